"""Batches used several times in a row, for training that is faster than the images can be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from genaffect_jax.data.loader import Loader

Batch = dict[str, np.ndarray]


class EchoedBatches(Iterator[Batch]):
    """Every batch of a loader `times` times in a row; the position inside a repetition is saved and restored too.

    The consumer should vary the images by itself, or it sees the very same batch again.

    Args:
        loader: the batches.
        times: how often each is used, at least 1.
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
        """The loader's state before the current batch, and how often that batch has been used."""
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
