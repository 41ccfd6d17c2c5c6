"""All entries of a folder exchanged for new ones inside it; a killed exchange is undone by the next one.

The folder itself stays: its mode, its group, links to it and what is mounted there. Entries are renamed one after the
other, so the exchange is no single step for a reader. JSON files leave first and come last: every format that is
written so is read from one of them (`model_index.json`, `onnx.json`, `config.json`). A reader finds the old content,
the new content, or no such file, which it names.

A hidden folder inside (`STAGE`) holds the new entries, then the old ones, and the list of all moves. What a killed
process left there says what was moved, and `undo_killed_exchange` moves it back. A set, whose index can name files
anywhere, needs no such gap (`io.file_set`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from genaffect_jax.io.lock import LOCK_FILE, locked

STAGE = ".genaffect-exchange."
"""Beginning of the hidden folders' names."""
_NEW, _OLD, _MOVES = "new", "old", "moves.json"


@contextmanager
def exchanged(folder: Path) -> Iterator[Path]:
    """A folder to fill inside an existing one; when the block ends without an error, its entries replace all others.

    After an error everything is as it was.

    Raises:
        InUseError: another process is filling `folder`.
        OSError: an entry cannot be moved, or the folder cannot be written.
    """
    with locked(folder):
        undo_killed_exchange(folder)
        stage = folder / f"{STAGE}{uuid4().hex[:8]}"
        stage.mkdir(0o700)
        try:
            (stage / _NEW).mkdir()
            yield stage / _NEW
            _exchange(folder, stage)
        except BaseException:
            _undo(folder, stage)
            raise
        _remove(stage)


def undo_killed_exchange(folder: Path) -> bool:
    """Puts back what a killed process had moved, and removes its hidden folder; returns whether there was one.

    The caller holds the folder's lock. An exchange that was complete stays.

    Raises:
        OSError: an entry cannot be moved back, or another of its name has been made meanwhile.
    """
    stages = list(folder.glob(f"{STAGE}*"))
    for stage in stages:
        _undo(folder, stage)
    return bool(stages)


def is_part_of_exchange(name: str) -> bool:
    """Whether an entry of a folder is a lock or a hidden folder of an exchange, and no content."""
    return name == LOCK_FILE or name.startswith(STAGE)


def _exchange(folder: Path, stage: Path) -> None:
    def index_last(name: str) -> tuple[bool, str]:
        return name.endswith(".json"), name

    before = [path.name for path in folder.iterdir() if not is_part_of_exchange(path.name)]
    outward = sorted(before, key=index_last, reverse=True)
    inward = sorted((path.name for path in (stage / _NEW).iterdir()), key=index_last)
    (stage / _OLD).mkdir()
    # A name of its own until it is whole: half a list must not be followed.
    noted = stage / f"{_MOVES}.part"
    noted.write_text(json.dumps({"outward": outward, "inward": inward}), encoding="utf-8")
    os.rename(noted, stage / _MOVES)
    for name in outward:
        os.rename(folder / name, stage / _OLD / name)
    for name in inward:
        os.rename(stage / _NEW / name, folder / name)


def _undo(folder: Path, stage: Path) -> None:
    """Moves back in the opposite order, as far as the moves went; nothing, if they were complete or had not begun."""
    try:
        moves = json.loads((stage / _MOVES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        _remove(stage)
        return
    moved_in = [name for name in moves["inward"] if not os.path.lexists(stage / _NEW / name)]
    moved_out = [name for name in moves["outward"] if os.path.lexists(stage / _OLD / name)]
    if moved_in == moves["inward"] and moved_out == moves["outward"]:
        _remove(stage)
        return
    for name in reversed(moved_in):
        os.rename(folder / name, stage / _NEW / name)
    for name in reversed(moved_out):
        if os.path.lexists(folder / name):
            raise OSError(
                errno.EEXIST, f"{os.strerror(errno.EEXIST)}; the old one is in {stage / _OLD}", str(folder / name)
            )
        os.rename(stage / _OLD / name, folder / name)
    _remove(stage)


def _remove(stage: Path) -> None:
    # The list first: without it, the rest is taken for what it is.
    (stage / _MOVES).unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)
