"""Whether a folder can be written to, known by trying, before anything expensive is made for it."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

_BLOCK = bytes(2**20)


def real_folder(folder: Path) -> Path:
    """The folder that a path stands for, links followed, also if it does not exist yet."""
    return Path(os.path.realpath(folder))


def why_not_writable(folder: Path, room: int = 2**16) -> str | None:
    """Why files cannot be made in a folder, or None if they can.

    In an existing folder, or in the nearest one above that exists, a file without a name is written.
    Permissions, read-only disks, full disks, quotas and limits of the process are met as the real files would meet
    them.

    Args:
        folder: the folder; it need not exist.
        room: size in bytes of the file that is tried.
    """
    try:
        if real_folder(folder).is_symlink():
            return "is a link that leads in a circle"
        # Names are tried as well: one that is too long shows here.
        place = real_folder(folder)
        while not os.path.lexists(place):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(place)
            place = place.parent
        if not place.is_dir():
            return "is a file; name a folder" if place == real_folder(folder) else f"{place} is a file, not a folder"
        with tempfile.TemporaryFile(prefix=".genaffect-probe.", dir=place, buffering=0) as file:
            _take(file.fileno(), room)
    except OSError as e:
        return f"cannot be written to: {e.strerror or e}"
    return None


def _take(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    for start in range(0, size, len(_BLOCK)):
        os.write(descriptor, _BLOCK[: size - start])
    os.fsync(descriptor)
