"""The environment of a deterministic run: recorded in its run folder, and compared when the run continues."""

from __future__ import annotations

import json
from collections.abc import Mapping

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.errors import CheckpointError, ConfigError
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.parallel.distributed import is_first
from genaffect_jax.parallel.environment import Environment

_FROM_STEP, _ENVIRONMENT = "from_step", "environment"


def keep_environment(run_dir: RunDir, deterministic: bool, step: int, now: Environment) -> str | None:
    """Records the environment of a deterministic run, or requires that it is the recorded one.

    A run that begins records it. A run that was not deterministic until now, and is to be from here, records it too:
    the promise then holds from this step on. A run that is not to be deterministic any more loses its record, so that
    no file promises what is no longer so. Of several processes the first writes; all compare.

    Args:
        run_dir: the run folder.
        deterministic: `train.deterministic`.
        step: the step at which the run begins (0) or continues.
        now: `parallel.environment.describe_environment`.

    Returns:
        What a user should know; None if there is nothing.

    Raises:
        ConfigError: the run continues in another environment; every difference is named.
        CheckpointError: the record cannot be read.
    """
    file = run_dir.environment
    if not deterministic:
        if not file.exists():
            return None
        if is_first():
            file.unlink()
        return (
            f"train.deterministic is off from step {step} on: {file.name} is removed, and what follows need not repeat "
            "to the bit"
        )
    if file.exists() and step > 0:
        since, before = _read(run_dir)
        changed = differences(before, now)
        if changed:
            raise ConfigError(
                f"the run in {run_dir.path} has been deterministic from step {since} on in another environment "
                f"({'; '.join(changed)}). Continue it in that environment, or give up the promise with False",
                field="train.deterministic",
                found=True,
            )
        return f"deterministic from step {since} on: the environment is that of {file.name}"
    if is_first():
        write_atomically(file, json.dumps({_FROM_STEP: step, _ENVIRONMENT: now}, indent=2) + "\n")
    return f"deterministic from step {step} on: the environment is recorded in {file.name}"


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """`version.jax was 0.10.2, is 0.11.2` for every entry that differs, in the order of `before`."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _read(run_dir: RunDir) -> tuple[int, Environment]:
    try:
        record = json.loads(run_dir.environment.read_text())
        return int(record[_FROM_STEP]), dict(record[_ENVIRONMENT])
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{run_dir.environment}: no record of an environment ({type(e).__name__}: {e}); restore the file, or "
            "remove it to record the environment from here on"
        ) from e
