"""A training as the loop sees it: a network, its loss, its input, and what is measured and shown beside.

Each kind of training (`training.denoiser`, `training.autoencoder`, `training.face_encoder`) makes one `Task` and hands
it to `training.loop.fit`, which knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.training.metric_log import Row
from genaffect_jax.training.step import Batch, LossFunction


class Batches(Protocol):
    """An endless input iterator whose position can be saved and restored exactly. Its batches are numpy arrays, or lie
    on the devices already (`training.prefetch.Prefetched`)."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Probe(Protocol):
    """A measurement of the averaged parameters beside the training, such as the conditioning probe."""

    @property
    def rating(self) -> str:
        """Name of the measured value that rates a checkpoint; lower is better."""
        ...

    def measure(self, parameters: Parameters) -> dict[str, float]:
        """The values, by the names that they are logged under. All processes call this in step."""
        ...

    def report(self, rows: Sequence[Row], steps: int, console: Console) -> None:
        """Prints what is worth a warning; called by process 0 after every measurement.

        Args:
            rows: all logged rows of the run so far, `training.metric_log.read_rows`.
            steps: steps of the whole run.
            console: where to print.
        """
        ...

    def plot(self, rows: Sequence[Row], path: Path) -> None:
        """Writes a plot of all logged rows, if any holds a measurement; called by process 0."""
        ...


@dataclass(frozen=True)
class Task:
    """One training; each field that is a function is called by all processes in step."""

    functional: Functional
    """The network that is trained."""
    loss: LossFunction
    """Its loss."""
    frozen_components: Mapping[str, Any]
    """Arrays of other networks that the loss reads, whole on every device; `{}` if there are none."""
    batches: Batches
    """Training input."""
    images_per_step: int
    """Target images in one batch over all processes, for the throughput figure."""
    preview: Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]
    """Makes a sample sheet with the averaged parameters."""
    config: str
    """The resolved configuration as JSON; saved in every checkpoint."""
    initial: Callable[[], Parameters] = dict
    """Makes the parameters that do not start at random; called when a run begins, not when it continues."""
    probe: Probe | None = None
    """Measures the averaged parameters every `probe_every` steps and with every checkpoint; None measures nothing."""
    sparse_terms: Collection[str] = ()
    """Terms of the loss that count no example in some steps, in which their mean is NaN; the log's means leave such
    steps out."""
    step_flops: float | None = None
    """Operations of the network in one step over all devices, without recomputation; None if not known."""
