"""Training logs: one JSON row per logged step in metrics.jsonl, and the same numbers and sheets in TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.io.image_grid import write_png


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
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog


class TrainingLog:
    """Writes `metrics.jsonl`, TensorBoard events (`tensorboard/`) and sheets (`sheets/`) below a run folder.

    A resumed run drops the rows of steps that it will run again, so each step stands in metrics.jsonl once. Of several
    processes one writes. Every method raises an OSError that names the file which cannot be written. Events are written
    at once: tensorboardX's own `SummaryWriter` writes in a thread, and waits for it for ever once a full disk has ended
    it.
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
        (workdir / "tensorboard").mkdir(exist_ok=True)
        with _naming(workdir / "tensorboard"):
            # Names hold the time in seconds: with the step as well, a clock that was set back overwrites nothing.
            self._events = EventsWriter(str(workdir / "tensorboard" / "events"), f".{first_step}")
            begins = SessionLog(status=SessionLog.SessionStatus.START)
            self._events.write_event(Event(wall_time=time.time(), step=first_step + 1, session_log=begins))
            self._events.flush()  # nothing may wait that fails when another error ends the run

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One row: the step and its numbers (units are in the names). A non-finite number becomes null."""
        if not self._writes:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _naming(self._workdir / "metrics.jsonl"):
            self._rows.write(json.dumps({"step": step, **row}) + "\n")
        self._event(step, [summary.scalar(name, value) for name, value in values.items()])

    def sheet(self, step: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """A sample sheet, as `sheets/<step>.png` and in TensorBoard."""
        if not self._writes:
            return
        path = self._workdir / "sheets" / f"{step:07d}.png"
        with _naming(path):
            write_png(image, path)
        self._event(step, [summary.image("sheet", image, dataformats="HWC")])

    def close(self) -> None:
        """Flushes both files."""
        if not self._writes:
            return
        with _naming(self._workdir / "metrics.jsonl"):
            self._rows.close()
        with _naming(self._workdir / "tensorboard"):
            self._events.close()

    def _event(self, step: int, summaries: Sequence[Any]) -> None:
        with _naming(self._workdir / "tensorboard"):
            for content in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=content))
            self._events.flush()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives an OSError the name that errors of open files lack."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def _step_of(row: str) -> float:
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # the torn last row of a run that was killed
