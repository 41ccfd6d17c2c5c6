"""The cached data set whole on every device, so that a batch travels as the indices of its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int
from rich.console import Console

from genaffect_jax.config import DataConfig
from genaffect_jax.data.example_table import example_table, gather
from genaffect_jax.data.sources.base import Source
from genaffect_jax.parallel.memory import device_memory
from genaffect_jax.parallel.sharding import place, replicated
from genaffect_jax.training.step import Batch, LossFunction, Terms

TABLE = "examples"
"""Name of the table among the frozen components of a `gathering` loss."""
_GIB = 2**30


def cache_on_devices(
    config: DataConfig, source: Source, prompts: Int[np.ndarray, " N"] | None, mesh: Mesh, console: Console
) -> dict[str, jax.Array] | None:
    """The table of a source (`data.example_table`) on every device, if its latents are cached and it is small enough.

    It is small enough up to `config.device_cache_gib`, and up to a quarter of a device's memory. The choice and its
    reason are printed. All processes call this in step and choose the same.

    Args:
        config: whether latents are cached, and the limit.
        source: the cached features of all images.
        prompts: row of the prompt table for each image; None for models that read no prompts.
        mesh: the devices.
        console: where to print.

    Returns:
        The table; None if batches must be streamed.
    """
    if not config.cache_latents:
        console.print("data set: streamed, its images are not cached (data.cache_latents)")
        return None
    table: dict[str, Any] = example_table(source, prompts)
    size = sum(column.nbytes for column in table.values()) / _GIB
    quarter = _smallest_memory() / 4
    if size > config.device_cache_gib:
        console.print(f"data set: streamed, its {size:.3g} GiB exceed data.device_cache_gib={config.device_cache_gib}")
        return None
    if size > quarter:
        console.print(
            f"data set: streamed, its {size:.3g} GiB exceed a quarter of a device's memory, {quarter:.3g} GiB"
        )
        return None
    console.print(f"data set: kept on every device, {size:.3g} GiB")
    return place(table, replicated(mesh))


def gathering(loss: LossFunction) -> LossFunction:
    """A loss of batches by index: it reads the batch from the table on the devices and hands it to `loss`.

    `frozen_components` holds the table as `TABLE`.
    """

    def gathered_loss(module: Any, frozen_components: Mapping[str, Any], batch: Batch, keys: jax.Array) -> Terms:
        # The barrier keeps the reading out of the fusions of the loss, whose roundings are then those of streaming.
        batch = jax.lax.optimization_barrier(gather(frozen_components[TABLE], batch))
        return loss(module, frozen_components, batch, keys)

    return gathered_loss


def _smallest_memory() -> float:
    """GiB of device memory, of the processes' devices the smallest."""
    memory = device_memory() / _GIB
    if jax.process_count() == 1:
        return memory
    return float(multihost_utils.process_allgather(np.float32(memory)).min())
