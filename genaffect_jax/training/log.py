"""Training logs: one JSON row per logged step in metrics.jsonl, and the same numbers and sheets in TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.data.sheet import write_png


@contextmanager
def _pytorch_out_of_sight() -> Iterator[None]:
    """Imports inside do not find PyTorch, unless it has been imported before."""
    if "torch" in sys.modules:
        yield
        return
    # None is how Python marks a module that is not to be found.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


# tensorboardX imports PyTorch wherever it is installed, for type annotations only; it costs seconds and memory.
with _pytorch_out_of_sight():
    from tensorboardX import SummaryWriter


class TrainingLog:
    """Writes `metrics.jsonl`, TensorBoard events (`tensorboard/`) and sheets (`sheets/`) below a working folder.

    A resumed run drops the rows of steps that it will run again, so each step stands in metrics.jsonl once. Of several
    processes one writes.
    """

    def __init__(self, workdir: Path, first_step: int, writes: bool = True):
        self._workdir = workdir
        self._writes = writes
        if not writes:
            return
        path = workdir / "metrics.jsonl"
        kept: list[str] = []
        if path.exists():
            kept = [row for row in path.read_text().splitlines() if _step_of(row) <= first_step]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(f"{row}\n" for row in kept))
            os.replace(temporary, path)
        self._rows = path.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One row: the step and its numbers (units are in the names). A non-finite number becomes null."""
        if not self._writes:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._rows.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def sheet(self, step: int, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """A sample sheet, as `sheets/<step>.png` and in TensorBoard."""
        if not self._writes:
            return
        write_png(picture, self._workdir / "sheets" / f"{step:07d}.png")
        self._events.add_image("sheet", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both files."""
        if self._writes:
            self._rows.close()
            self._events.close()


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # the torn last row of a run that was killed
