"""Whether a folder may become, or be, the run folder of this training: nobody else's, and one that can be written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from genaffect_jax.errors import ConfigError
from genaffect_jax.io.lock import locked
from genaffect_jax.io.output import one_line
from genaffect_jax.parallel.distributed import is_first


@contextmanager
def held_run_folder(path: Path) -> Iterator[None]:
    """Keeps other trainings out of a run folder during the block; of several processes the first one holds it.

    The folder is made if it is not there, and goes again if nothing was written into it. A folder that cannot be
    written to is not held; `RunDir.create` says why.

    Raises:
        InUseError: another training holds it; the message names its host and process.
    """
    with ExitStack() as stack:
        if is_first():
            there = path.exists()
            with suppress(OSError):
                path.mkdir(parents=True, exist_ok=True)
                if not there:
                    stack.callback(_remove_if_empty, path)
                stack.enter_context(locked(path))
        yield


def require_utf8(path: Path, field: str) -> None:
    """Raises ConfigError about `field` if the whole path of a run folder, links followed, is not UTF-8."""
    # The library that writes checkpoints takes whole paths, links followed, as UTF-8.
    whole = os.path.realpath(path)
    try:
        whole.encode()
    except UnicodeEncodeError as e:
        reason = f"its whole path, {one_line(whole)}, is not UTF-8; rename the folder, or take another"
        raise ConfigError(reason, field=field, found=path) from e


def require_own_settings(folder: Path, config: Path) -> None:
    """Raises ConfigError if the `config.json` of a folder is another program's, such as that of a pretrained network.

    One that is missing or no JSON passes: a start that was killed may have left it.
    """
    try:
        found = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(found, dict) and not {"train", "data"} & found.keys():  # ours always has these
        shown = ", ".join(map(str, list(found)[:3])) or "nothing"
        reason = f"holds a {config.name} of another program (entries: {shown}); name a new or empty folder"
        raise ConfigError(reason, field="workdir", found=folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
