"""Errors of checkpoints are reported once, by the caller that waits for them, in one line and without tracebacks."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# A failed write passes several threads and tasks on its way to the caller: orbax logs each thread through absl, and
# asyncio logs each task.
_LOGGERS = ("absl", "asyncio")


def _without_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


@contextmanager
def told_once() -> Iterator[None]:
    """In the block, errors of a save are reported by `checkpoints.manager` alone; the libraries' logs are dropped."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_without_traceback)
    report = sys.unraisablehook

    def without_late_writes(unraisable: sys.UnraisableHookArgs) -> None:
        # Tensorstore finishes writes that nobody waits for any more, and then finds asyncio's loop closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = without_late_writes
    try:
        yield
    finally:
        sys.unraisablehook = report
        for logger in loggers:
            logger.removeFilter(_without_traceback)


def reason_of(error: BaseException) -> str:
    """One line of an error that orbax may have wrapped in others, and tensorstore written over several lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)} ({error.filename})" if error.filename else os.strerror(error.errno)
    full = os.strerror(errno.ENOSPC)
    return full if full in str(error) else " ".join(str(error).split())[:300] or type(error).__name__
