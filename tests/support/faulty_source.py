"""A source of small random images, one of which can be made to fail while it is loaded."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import parent_process

import numpy as np

from genaffect_jax.data.sources.base import Example

FAULTS = {
    "raises": "an error that is no DataError",
    "shape": "an image of another shape",
    "type": "an image of another type",
    "killed": "the end of the worker process that loads it",
}


class FaultySource:
    """Images of 8 x 8 pixels, each a function of its index, loaded in `seconds` each.

    Args:
        count: number of images.
        fault: one of `FAULTS`, or nothing.
        at: the image that it happens to.
        seconds: time that loading an image takes.
    """

    width = 3

    def __init__(self, count: int, fault: str = "", at: int = 0, seconds: float = 0.0) -> None:
        self.examples = [Example(f"p{i}", "joy", np.zeros(3, np.float32)) for i in range(count)]
        self.fault, self.at, self.seconds = fault, at, seconds

    def load(self, index: int) -> np.ndarray:
        time.sleep(self.seconds)
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        if not self.fault or index != self.at:
            return image
        if self.fault == "raises":
            raise ZeroDivisionError("no such number")
        if self.fault == "killed":
            assert parent_process() is not None, "only a worker process may be killed"
            os.kill(os.getpid(), signal.SIGKILL)
        return image[:1] if self.fault == "shape" else image.astype(np.float32)

    def describe(self) -> str:
        return "small random images"

    def fingerprint(self) -> str:
        return f"{len(self.examples)}"
