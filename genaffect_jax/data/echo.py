"""Batches used several times in a row, for training that is faster than rendering the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from genaffect_jax.data.loader import Loader

Batch = dict[str, np.ndarray]


class EchoedBatches(Iterator[Batch]):
    """Every batch of a loader, `times` times in a row; the state includes the position inside a repetition.

    All uses of a batch are one and the same dictionary, by which training sees that its devices hold the batch already.
    The batches are equal, so the consumer should augment them.

    Args:
        loader: the batches.
        times: number of uses of each batch, at least 1.
    """

    def __init__(self, loader: Loader, times: int) -> None:
        if times < 1:
            raise ValueError(f"times={times}: must be at least 1")
        self._loader = loader
        self._times = times
        self._used = 0
        self._before = loader.get_state()
        self._batch: Batch | None = None

    def __next__(self) -> Batch:
        if self._batch is None or self._used == self._times:
            self._before = self._loader.get_state()
            self._batch = next(self._loader)
            self._used = 0
        self._used += 1
        return self._batch

    def get_state(self) -> dict[str, Any]:
        """The loader's state before the current batch, and the number of uses of that batch."""
        return {"loader": self._before, "used": self._used}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_state` was called.

        Raises:
            DataError: the state belongs to another stream.
        """
        self._loader.set_state(state["loader"])
        self._before, self._used = state["loader"], state["used"]
        self._batch = next(self._loader) if self._used else None

    def close(self) -> None:
        """Stops the loader's worker processes."""
        self._loader.close()
