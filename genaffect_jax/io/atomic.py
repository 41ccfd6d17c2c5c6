"""Atomic writes: a file or a folder appears complete under its name, or not at all.

Everything is written beside its target, under a hidden name of its own, and renamed when it is complete. Readers see
the old content or the new one, also when several processes write. After an error, Ctrl-C included, the target is as it
was and nothing else is left; a process that is killed leaves the hidden file (`remove_partial`). New files and folders
have the permissions that the umask gives them, also when a library wrote them with others
(`safetensors.numpy.save_file` makes its files readable for their owner alone).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from uuid import uuid4

from genaffect_jax.io.exchange import exchanged, is_part_of_exchange

_PROBE = ".mode"  # ending of a file that is made to see the permissions of new files


@contextmanager
def new_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write a file to; when the block ends without an error, that file takes the place of `path`.

    The file gets the permissions of an ordinary new file there. Execute bits that the block set are kept, as far as the
    umask allows them.

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
        _set_ordinary_permissions([temporary], probe=temporary.with_name(f"{temporary.name}{_PROBE}"))
        if durable:
            _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as e:
        # A failed write names no file, a failed copy its source first, and the temporary names say nothing to a user.
        ours = (str(temporary), f"{temporary}{_PROBE}")
        if e.errno is not None and (e.filename is None or str(e.filename) in ours or str(e.filename2) in ours):
            e.filename, e.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Removes what killed processes left of a file that `new_file` was to write; no other process may be writing it."""
    for partial in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        partial.unlink(missing_ok=True)


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

    All files in it, and in folders below, get permissions as those of `new_file`. A folder that exists stays itself,
    with its mode, group, links to it and what is mounted there: its entries are exchanged for the new ones, one after
    the other, and a process killed in that moment leaves a folder that readers refuse and the next call restores
    (`io.exchange`).

    Args:
        folder: the target; links are followed, and the folder that holds it is made if need be.
        replace: what an earlier `folder` holds is removed once the new files are there; what may be removed is for the
            caller to check.

    Raises:
        InUseError: `folder` exists, and another process is filling it.
        OSError: the folder cannot be written, or `folder` holds something and `replace` is not set.
    """
    folder = Path(os.path.realpath(folder))
    if folder.is_dir():
        with exchanged(folder) as new:
            if not replace:
                _require_empty(folder)
            yield new
            _set_ordinary_permissions(_files(new), probe=new.parent / _PROBE)
            if not replace:
                _require_empty(folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, on the same disk, as renaming needs.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new
        _set_ordinary_permissions(_files(new), probe=Path(scratch) / _PROBE)
        os.rename(new, folder)


def _files(folder: Path) -> Iterator[Path]:
    return (Path(root, name) for root, _, names in os.walk(folder) for name in names)


def _require_empty(folder: Path) -> None:
    if not all(is_part_of_exchange(path.name) for path in folder.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))


def _set_ordinary_permissions(files: Iterable[Path], *, probe: Path) -> None:
    """Gives files the permissions of a new file at `probe`, which is made and removed; links are left alone."""
    # The umask cannot be read without setting it for all threads, and a folder's default ACL takes its place. A file
    # that asks for everything shows what is granted.
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o777))
        granted = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for file in files:
        found = file.lstat().st_mode
        mode = granted & (0o666 | found & 0o111)
        if stat.S_ISREG(found) and mode != stat.S_IMODE(found):
            file.chmod(mode)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
