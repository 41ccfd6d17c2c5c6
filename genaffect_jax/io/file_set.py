"""Files that belong together in a folder with others: replaced inside the folder, never mixed.

One file, the index, names all others. `replace_files` keeps the folder itself, so links to it, mount points, modes,
groups and the files of others stay what they are. At every moment, also after the process was killed, the index names
files of one set only, the old or the new one, and all of them are there:

1. The new files are written into a hidden folder inside, twice by name and once on the disk (hard links where the file
   system has them). The old set is untouched.
2. One rename puts an index in place that names the new files where they lie, in the hidden folder.
3. The second names are moved to where the files belong, over old ones of the same name; other old files go.
4. One rename puts the index in place that names the files there, and the hidden folder goes.

A process killed between 2 and 4 leaves a whole new set with names in the hidden folder. The index of step 2 names, as
the set's own, everything that step 3 leaves behind; the next replacement removes it. A reader that began before step 2
sees at the end that the index changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from uuid import uuid4

STAGE = ".genaffect-new."
"""Beginning of the hidden folders' names."""

# index(names, own): content of the index that names the files so (each name as it is in the stage, and as it is to be
# written), and all files that the set calls its own.
Index = Callable[[Callable[[str], str], Sequence[str]], str]


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of `stem_2.png`, `stem_3.png`, ... that is not taken."""
    stem, dot, ending = name.rpartition(".")
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{stem}_{number}{dot}{ending}"
    return found


def replace_files(folder: Path, index_name: str, fill: Callable[[Path], Index], old: Collection[str]) -> None:
    """Writes files and an index into an existing folder and removes the old ones; see the module.

    Args:
        folder: where the files belong. Nobody else may be replacing files (`io.lock`).
        index_name: the index's file name.
        fill: writes the files, not the index, into an empty folder, and returns what makes the index. A file that
            bears the name of one in `folder` takes its place.
        old: the earlier set's files without the index, relative to the folder.

    Raises:
        OSError: a file cannot be written. Before step 2, everything is as it was; from then on the new set is whole.
    """
    remove_old_stages(folder, old)
    stage = folder / f"{STAGE}{uuid4().hex[:8]}"
    second, needed = stage / "second", False
    stage.mkdir()
    try:
        index = fill(stage)
        names = sorted(path.name for path in stage.iterdir())
        second.mkdir()
        for name in names:
            _flush(stage / name)
            _link_or_copy(stage / name, second / name)
        # Both indices now: once the first is in place, nothing may need room.
        left = sorted({*names, *old, *(f"{stage.name}/{name}" for name in names)})
        _write(stage / "staged.index", index(lambda name: f"{stage.name}/{name}", left))
        _write(stage / "placed.index", index(lambda name: name, names))
        needed = True
        try:
            os.replace(stage / "staged.index", folder / index_name)
        except OSError:
            needed = False
            raise
        for name in names:
            os.replace(second / name, folder / name)
        for name in {*old} - {*names}:
            (folder / name).unlink(missing_ok=True)
        os.replace(stage / "placed.index", folder / index_name)
    except BaseException:
        if not needed:
            shutil.rmtree(stage, ignore_errors=True)
        raise
    remove_old_stages(folder, ())


def remove_old_stages(folder: Path, needed: Collection[str]) -> None:
    """Removes hidden folders that killed processes left, but not those of the files `needed`."""
    used = {name.partition("/")[0] for name in needed}
    for stage in folder.glob(f"{STAGE}*"):
        if stage.name not in used:
            shutil.rmtree(stage, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _flush(path)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
