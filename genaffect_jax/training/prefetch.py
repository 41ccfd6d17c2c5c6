"""Batches that a thread makes and puts on the devices while earlier steps are computed."""

from __future__ import annotations

from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import jax
from jax.sharding import Mesh

from genaffect_jax.training.step import Batch, device_batch
from genaffect_jax.training.task import Batches

DeviceBatch = dict[str, jax.Array]


class Prefetched:
    """The batches of another input, on the devices a few steps before they are needed; a `training.task.Batches`.

    A thread, which starts with the first batch, reads them in order. Nobody sees how far it is ahead: the position is
    always that after the batch handed out last, and an error is raised by the call that would have returned the batch.

    Args:
        batches: the input; the thread alone uses it until `close` or `set_state`.
        mesh: the devices.
        ahead: batches that wait at most, at least 1; one more is in the making.
    """

    def __init__(self, batches: Batches, mesh: Mesh, ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"ahead={ahead}: must be at least 1")
        self._batches, self._mesh, self._ahead = batches, mesh, ahead
        self._position = batches.get_state()
        self._input_is_ahead = False
        self._thread: _Thread | None = None

    def __next__(self) -> DeviceBatch:
        if self._thread is None:
            if self._input_is_ahead:
                self._batches.set_state(self._position)
            self._input_is_ahead = True
            self._thread = _Thread(self._batches, self._mesh, self._ahead)
        found = self._thread.ready.get()
        if isinstance(found, BaseException):
            self._stop()
            raise found
        batch, self._position = found
        return batch

    def get_state(self) -> Any:
        """The input's position after the batch handed out last."""
        return self._position

    def set_state(self, state: Any) -> None:
        """Continues from a position of the input; raises as the input does."""
        self._stop()
        self._batches.set_state(state)
        self._position, self._input_is_ahead = state, False

    def close(self) -> None:
        """Ends the thread, after the batch that it makes, and closes the input. A later `next` starts again, with the
        batch after the one handed out last."""
        self._stop()
        self._batches.close()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


class _Thread(Thread):
    """Reads batches until it is stopped or one cannot be made."""

    def __init__(self, batches: Batches, mesh: Mesh, ahead: int) -> None:
        super().__init__(name="prefetch", daemon=True)  # a second Ctrl-C does not wait for it
        self.ready: Queue[tuple[DeviceBatch, Any] | BaseException] = Queue(ahead)
        """Batches, each with the position after it; or at last the error."""
        self._batches, self._mesh, self._stopping = batches, mesh, Event()
        self.start()

    def run(self) -> None:
        made: Batch | None = None
        placed: DeviceBatch = {}
        try:
            while not self._stopping.is_set():
                batch = next(self._batches)
                if batch is not made:  # a batch that is used several times travels to the devices once
                    made, placed = batch, device_batch(batch, self._mesh)
                self.ready.put((placed, self._batches.get_state()))
        except BaseException as e:  # the step that needs the batch raises it
            self.ready.put(e)

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._stopping.set()
        # Makes room for the one batch or error that the thread may still hold.
        try:
            while True:
                self.ready.get_nowait()
        except Empty:
            self.join()
