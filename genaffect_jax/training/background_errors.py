"""Errors of background saves are told once, by who waits for them, and not also logged with pages of tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Orbax logs through absl every thread that a failed write passes on its way to the caller, asyncio every task.
_LOGGERS = ("absl", "asyncio")


def _without_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


@contextmanager
def told_once() -> Iterator[None]:
    """In this block those loggers keep quiet about errors with a traceback; `training.checkpoint` raises them."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_without_traceback)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_without_traceback)
