"""The device mesh."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices out as `[data, fsdp, tensor]`: neighbours, which talk fastest, share an image.

    Devices of one process are neighbours, so every process holds one piece of a batch.

    Args:
        config: sizes of the axes; `data=-1` takes every device that the others leave.
        devices: all devices of the job when left out.

    Raises:
        ConfigError: the axis sizes do not multiply to the number of devices.
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id)) if devices is None else list(devices)
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices):
        raise ConfigError(
            f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor={config.tensor}: the product of the axis "
            f"sizes (data=-1: what the others leave) must be the number of {devices[0].platform} devices, "
            f"{len(devices)}"
        )
    # Auto axes: the compiler places the collectives from the shardings of inputs, state and outputs.
    grid = np.asarray(devices).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def describe_devices(mesh: Mesh) -> str:
    """`8 cpu device(s)`, and of how many processes, for people."""
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} {mesh.devices.flat[0].platform} device(s){processes}"
