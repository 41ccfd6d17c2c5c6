"""Atomic writes: a file or a folder appears complete under its name, or not at all.

Everything is written beside its target, under a hidden name of its own, and renamed when it is complete. Readers see
the old content or the new one, also when several processes write. After an error, Ctrl-C included, the target is as it
was and nothing else is left. New files and folders have the permissions that the umask gives them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def new_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write a file to; when the block ends without an error, that file takes the place of `path`.

    Args:
        path: the target; its folder is made if need be, an earlier file is replaced.
        durable: the content reaches the disk before the name does, so that a power failure cannot leave an empty file.

    Raises:
        OSError: the file cannot be written; the error names `path`, or the folder that cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if durable:
            _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as e:
        # A failed write names no file, and the temporary name says nothing to a user.
        if e.errno is not None and e.filename in (None, str(temporary), temporary):
            e.filename, e.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file at once; text becomes UTF-8 without any change of line ends. See `new_file`."""
    with new_file(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def copy_atomically(source: Path, target: Path) -> None:
    """Copies the content of a file, not its permissions or times. See `new_file`."""
    with new_file(target) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill; when the block ends without an error, it becomes `folder`.

    Args:
        folder: the target; the folder that holds it is made if need be.
        replace: an earlier `folder` is moved away and, once the new one has its name, removed with all its files; what
            may be removed is for the caller to check.

    Raises:
        OSError: the folder cannot be written, or `folder` holds something and `replace` is not set.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One hidden folder beside the target (renaming needs the same disk) holds the new and, for a moment, the old one.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if replace and folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
