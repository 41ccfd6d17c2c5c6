"""A profile of a few training steps on request, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

STEPS = 3


class StepProfile:
    """Traces `STEPS` steps of a run into a folder.

    Args:
        folder: folder of the trace.
        first: number of the first traced step, counted from 1; 0 traces none.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._folder, self._first, self._running = folder, first, False

    def before(self, step: int, waits_for: Any) -> None:
        """Called before every step. Starts the trace once `waits_for` is computed: earlier steps are no part of it."""
        if step == self._first:
            jax.block_until_ready(waits_for)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, result: Any) -> bool:
        """Called after every step with its result; returns whether the trace ended with this step."""
        if not self._running or step < self._first + STEPS - 1:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace in progress: a run may end before the last traced step."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
