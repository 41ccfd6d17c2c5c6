"""Errors of background saves are told once, by who waits for them, and not also logged with pages of tracebacks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Orbax logs through absl every thread that a failed write passes on its way to the caller, asyncio every task.
_LOGGERS = ("absl", "asyncio")


def _without_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


@contextmanager
def told_once() -> Iterator[None]:
    """In this block nobody but the caller of `checkpoints.manager` reports the errors of a save."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_without_traceback)
    report = sys.unraisablehook

    def without_late_writes(unraisable: sys.UnraisableHookArgs) -> None:
        # Tensorstore goes on writing what nobody waits for any more, and finds asyncio's loop closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = without_late_writes
    try:
        yield
    finally:
        sys.unraisablehook = report
        for logger in loggers:
            logger.removeFilter(_without_traceback)
