"""Processors of this process."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Number of processors that this process may run on; all of the machine where the system does not tell (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
