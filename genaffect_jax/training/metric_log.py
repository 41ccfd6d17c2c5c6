"""The training log: one JSON row per logged step in metrics.jsonl, and the same numbers and sheets in TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.image_grid import write_png

Row = Mapping[str, Any]
"""One row of metrics.jsonl: `step` and the logged numbers; None stands for a number that was not finite."""


@contextmanager
def _pytorch_out_of_sight() -> Iterator[None]:
    """Imports in the block do not find PyTorch, unless it has been imported before."""
    if "torch" in sys.modules:
        yield
        return
    # None marks a module that Python must not find.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


# tensorboardX imports PyTorch wherever it is installed, for type annotations only; it costs seconds and memory.
with _pytorch_out_of_sight():
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog


class TrainingLog:
    """Writes `RunDir.metrics`, TensorBoard events and sample sheets of one run.

    A run that continues drops the rows of steps that it will run again, so that each step has one row. Every method
    raises an OSError that names the file which cannot be written. Events are written at once: tensorboardX's own
    `SummaryWriter` writes in a thread, which ends when the disk is full, and then waits for that thread for ever.

    Args:
        run_dir: the run folder.
        first_step: steps that are done already.
        writes: whether this process writes; of several, one does.
    """

    def __init__(self, run_dir: RunDir, first_step: int, writes: bool = True):
        self._run_dir = run_dir
        self._writes = writes
        if not writes:
            return
        path = run_dir.metrics
        if path.exists():
            kept = [row for row in path.read_text().splitlines() if _step_of(row) <= first_step]
            write_atomically(path, "".join(f"{row}\n" for row in kept))
        self._rows = path.open("a", buffering=1)
        run_dir.tensorboard.mkdir(exist_ok=True)
        with _naming(run_dir.tensorboard):
            # Event files are named by the second. The step in the name keeps a clock that was set back from
            # overwriting one.
            self._events = EventsWriter(str(run_dir.tensorboard / "events"), f".{first_step}")
            begins = SessionLog(status=SessionLog.SessionStatus.START)
            self._events.write_event(Event(wall_time=time.time(), step=first_step + 1, session_log=begins))
            self._events.flush()  # buffered events would fail later, when another error ends the run

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row: the step and its numbers, whose names say the unit. A non-finite number becomes null."""
        if not self._writes:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _naming(self._run_dir.metrics):
            self._rows.write(json.dumps({"step": step, **row}) + "\n")
        self._event(step, [summary.scalar(name, value) for name, value in values.items()])

    def sheet(self, step: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Writes a sample sheet, as `RunDir.sheet(step)` and in TensorBoard."""
        if not self._writes:
            return
        path = self._run_dir.sheet(step)
        with _naming(path):
            write_png(image, path)
        self._event(step, [summary.image("sheet", image, dataformats="HWC")])

    def close(self) -> None:
        """Writes what is buffered and closes both files."""
        if not self._writes:
            return
        with _naming(self._run_dir.metrics):
            self._rows.close()
        with _naming(self._run_dir.tensorboard):
            self._events.close()

    def _event(self, step: int, summaries: Sequence[Any]) -> None:
        with _naming(self._run_dir.tensorboard):
            for content in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=content))
            self._events.flush()


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, in order; empty if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError: errors of files that are open already have none."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # the torn last row of a run that was killed
