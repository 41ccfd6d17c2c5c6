"""Locks of folders: one process at a time changes what is in them.

The lock is a file that names its holder by host and process. Where the file system has POSIX record locks
(`fcntl.lockf`), they decide: they end with their process, however it ends, so a lock that a killed process left is
taken over at once, on whatever host the next one runs. A file system that keeps record locks for each host alone (some
mounts of Lustre and NFS) excludes only processes of one host. Without record locks the file itself is the lock: if its
process is gone from this host it is taken over; if it names another host, it stands until somebody removes it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genaffect_jax.errors import InUseError

try:
    import fcntl
except ImportError:  # pragma: no cover: Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".genaffect.lock"
"""Name of the lock file in a folder."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
_PAUSE = 0.05
# Record locks belong to the process: its own threads see them as free, and lose them when any descriptor of the file is
# closed. Locks of this process are therefore known by name.
_own: set[str] = set()
_guard = threading.Lock()


@contextmanager
def locked(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the lock of an existing folder during the block; other threads of this process are excluded too.

    The lock file is removed at the end; what a killed process left does no harm.

    Args:
        folder: an existing folder in which files can be made.
        wait_s: how long to wait for another holder, in seconds.

    Raises:
        InUseError: another process, or another thread, holds the lock; the message names host and process.
        OSError: the lock file cannot be written.
    """
    path = Path(os.path.realpath(folder)) / LOCK_FILE
    until = time.monotonic() + wait_s
    while (release := _try(path)) is None:
        if time.monotonic() >= until:
            raise InUseError(
                f"{folder}: in use by {_told(_holder(path))}; wait until it has ended (its lock is {path})"
            )
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        release()


def _try(path: Path) -> Any:
    """A function that releases the lock, or None if another holds it."""
    with _guard:
        if str(path) in _own:
            return None
        release = _try_record_lock(path) if fcntl is not None else _try_file(path)
        if release is None:
            return None
        _own.add(str(path))

    def release_both() -> None:
        with _guard:
            try:
                release()
            finally:
                _own.discard(str(path))

    return release_both


def _try_record_lock(path: Path) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            made = os.fstat(descriptor).st_size == 0  # by this call: locks that are files appear with their content
            os.close(descriptor)
            if e.errno in _UNSUPPORTED:
                if made:
                    path.unlink(missing_ok=True)
                return _try_file(path)
            if e.errno in _HELD:
                return None
            raise
        # The holder before removes the file when it is done: a lock on the removed file excludes nobody.
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _description())
    except OSError as e:
        with suppress(OSError):
            os.close(descriptor)
        e.filename = e.filename or str(path)
        raise

    def release() -> None:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)

    return release


def _try_file(path: Path) -> Any:
    """The lock without record locks: who makes the file holds it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        for _ in range(2):
            try:
                aside.write_bytes(_description())
                os.link(aside, path)  # appears with its content, and only if there is none
            except FileExistsError:
                holder = _holder(path)
                if not _is_gone(holder):
                    return None
                # Of several that find it stale, the first to rename it away goes on.
                with suppress(FileNotFoundError):
                    os.rename(path, aside)
                    if _holder(aside) != holder:  # another took it over meanwhile: give its lock back
                        os.link(aside, path)
                continue

            def release() -> None:
                with suppress(OSError):
                    path.unlink()

            return release
    finally:
        aside.unlink(missing_ok=True)
    return None


def _description() -> bytes:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": int(time.time())}).encode() + b"\n"


def _holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # removed or being written at this moment
    return found if isinstance(found, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():
        return True  # this process's own locks are in `_own`: an earlier process had the same number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _told(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    since = holder.get("since")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int) else "an unknown time"
    return f"process {holder.get('pid')} on {holder.get('host')} since {when}"
