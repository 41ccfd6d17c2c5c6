"""What the training commands share around the loop: the working folder's configuration, and how a run ends."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from genaffect_jax.config import AutoencoderRun, Config, ConfigError, HostsConfig, from_json, to_json
from genaffect_jax.config.encoders import EncoderRun
from genaffect_jax.data.pictures import DataError
from genaffect_jax.models.weights import WeightsError
from genaffect_jax.parallel.hosts import (
    LostProcessError,
    are_several,
    describe_process,
    is_first,
    join,
    lost_processes_named,
)
from genaffect_jax.parallel.supervise import FAILED, INTERRUPTED, LOST, supervise
from genaffect_jax.training.background_errors import told_once
from genaffect_jax.training.checkpoint import CheckpointError
from genaffect_jax.training.guard import TrainingError

COMPLETE = 0

# No defects of this program: disk full, quota used up, read-only, not allowed, disk broken.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

# Fields that may change between the runs of one working folder: they do not touch what is learned, but for the order of
# sums over devices.
_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.sheet_every",
    "train.gap_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.most_skipped",
    "train.profile_at",
    "data.workers",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)


def claim_workdir(workdir: Path, config: Config | AutoencoderRun | EncoderRun) -> str:
    """Writes `config.json` into the working folder, or checks that the run there is the same one.

    Of several processes the first writes it; the others, which come after it, must find it.

    Returns:
        The configuration as JSON.

    Raises:
        ConfigError: the folder belongs to a run with other settings, which are listed, or cannot be written to. Or the
            hosts do not share it.
    """
    path = workdir / "config.json"
    if path.exists():
        before = from_json(type(config), path.read_text())
        changed = [line for line in _differences(before, config) if line.split("=")[0] not in _MAY_CHANGE]
        if changed:
            raise ConfigError(
                f"--workdir {workdir}: holds a run with other settings ({'; '.join(changed)}); "
                "use another folder, or the same settings to continue it"
            )
    text = to_json(config)
    if not is_first():
        if not path.exists() or path.read_text() != text:
            raise ConfigError(
                f"--workdir {workdir}: {describe_process()} does not find there what process 0 has written; the folder "
                "must lie on a file system that all hosts share, and all processes need the same settings"
            )
        return text
    temporary = path.with_suffix(".tmp")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as e:
        raise ConfigError(f"--workdir {workdir}: cannot be written to: {e.strerror}") from e
    return text


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if hasattr(before, "__dataclass_fields__"):
        return [
            line
            for field in before.__dataclass_fields__
            for line in _differences(getattr(before, field), getattr(now, field), f"{name}.{field}".lstrip("."))
        ]
    return [] if before == now else [f"{name}={before}, now {now}"]


def run_reporting_errors(work: Callable[[Console], bool], hosts: HostsConfig | None = None) -> int:
    """Runs `work(console)`, which returns True if it is complete, and turns its end into an exit status.

    Expected failures (configuration, data, checkpoint, diverged training, a full or read-only disk, a lost process)
    print one message; anything else is a defect of this program and keeps its traceback.

    Args:
        work: the run.
        hosts: the processes that run it together, if there are others; each calls this. Only process 0 gets a console
            that prints; errors come from each, with its number.
    """
    if hosts is None or not are_several(hosts):
        return _status(lambda: work(Console(stderr=True)))
    return supervise(hosts, lambda joined: _run_with_others(work, hosts, joined))


def _run_with_others(work: Callable[[Console], bool], hosts: HostsConfig, joined: Callable[[str], None]) -> int:
    together = False

    def run() -> bool:
        nonlocal together
        join(hosts)
        joined(describe_process())
        with lost_processes_named():
            complete = work(Console(stderr=True, quiet=not is_first()))
            jax.distributed.shutdown()  # waits for the others
        together = True
        return complete

    try:
        status = _status(run)
    except Exception:
        traceback.print_exc()
        status = FAILED
    if not together:
        # Python's way out would wait for the others, and they for this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _status(work: Callable[[], bool]) -> int:
    def tell(error: str) -> None:
        where = f"{describe_process()}: " if jax.distributed.is_initialized() else ""
        print(f"error: {where}{error}", file=sys.stderr)

    try:
        with told_once():
            return COMPLETE if work() else INTERRUPTED
    except LostProcessError as e:
        tell(str(e))
        return LOST
    except (ConfigError, DataError, WeightsError, CheckpointError, TrainingError) as e:
        tell(str(e))
        return FAILED
    except OSError as e:
        if e.errno not in _MACHINE:
            raise
        tell(f"{e.filename or 'a file'}: {e.strerror}; the checkpoints are as they were")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
