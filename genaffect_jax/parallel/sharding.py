"""One table of logical to mesh axes, and the shardings that follow from it.

Networks name the axes of their parameters (`logical_axes` metadata) and never mention devices; this table is the
only place that knows which mesh axis cuts which logical axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from genaffect_jax.errors import ConfigError

Tree = TypeVar("Tree")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),  # images
    "embed": "fsdp",  # width of the residual streams: present in every large matrix
    "conv_out": "fsdp",
    "heads": "tensor",  # heads * head size
    "mlp": "tensor",  # features inside a feed-forward
    "conditioning": None,
    "conv_in": None,
    "layers": None,  # the scanned axis: every device runs every layer
}


def partition_spec(
    logical_axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, name: str
) -> PartitionSpec:
    """The mesh axes of one array.

    Args:
        logical_axes: one name of `RULES` (or None: not cut) per dimension.
        shape: the array's shape.
        mesh: the mesh it will live on.
        name: what to call the array in an error.

    Raises:
        ValueError: rank mismatch, unknown logical axis, or one mesh axis used for two dimensions.
        ConfigError: a dimension that the mesh does not divide.
    """
    if len(logical_axes) != len(shape):
        raise ValueError(f"{name}: logical axes {logical_axes} for shape {shape}: one per dimension is needed")
    spec: list[str | tuple[str, ...] | None] = []
    used: dict[str, str] = {}
    for axis, size in zip(logical_axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"{name}: unknown logical axis {axis!r} (known: {', '.join(RULES)})")
        target = None if axis is None else RULES[axis]
        for mesh_axis in (target,) if isinstance(target, str) else target or ():
            if mesh_axis in used:
                raise ValueError(f"{name}: mesh axis {mesh_axis!r} is claimed by both {used[mesh_axis]!r} and {axis!r}")
            used[mesh_axis] = str(axis)
        parts = mesh_size(mesh, target)
        if size % parts:
            raise ConfigError(
                f"{name}: {axis!r} of size {size} is not divisible by {parts} devices (mesh axes {target})"
            )
        spec.append(target)
    return PartitionSpec(*spec)


def mesh_size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Number of devices along the given mesh axes together."""
    size = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        size *= mesh.shape[axis]
    return size


def parameter_shardings(
    logical_axes: Mapping[str, tuple[str | None, ...]], shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, NamedSharding]:
    """Shardings of a flat parameter dictionary; raises as `partition_spec` does."""
    return {
        name: NamedSharding(mesh, partition_spec(axes, shapes[name].shape, mesh, name))
        for name, axes in logical_axes.items()
    }


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is cut: devices that share images have the same part."""
    return mesh_size(mesh, RULES["batch"])


def batch_shard(mesh: Mesh) -> tuple[int, int]:
    """Which share of every batch this process puts on its devices, as (number from 0, number of shares).

    Processes whose devices hold the same images (`tensor` reaches across them) have the same share.

    Raises:
        ConfigError: the processes' devices do not hold equal shares.
    """
    parts = batch_parts(mesh)
    held: dict[int, set[int]] = {}
    for place, device in enumerate(mesh.devices.flat):
        held.setdefault(device.process_index, set()).add(place * parts // mesh.size)
    size = len(held[jax.process_index()])
    if any(len(found) != size or {part // size for part in found} != {min(found) // size} for found in held.values()):
        raise ConfigError(
            f"mesh.tensor={mesh.shape['tensor']}: there are {len(held)} processes of {mesh.size // len(held)} devices; "
            "of mesh.tensor and the devices of a process one must divide the other"
        )
    return min(held[jax.process_index()]) // size, parts // size


def check_batch(size: int, accumulate: int, mesh: Mesh) -> None:
    """Refuses a batch that does not divide over the mesh.

    Args:
        size: sets in a batch.
        accumulate: parts that are computed one after the other, each spread over all devices.
        mesh: the mesh.

    Raises:
        ConfigError: it does not.
    """
    parts = batch_parts(mesh)
    if size % (accumulate * parts):
        raise ConfigError(
            "must be a multiple of train.gradient_accumulation_steps * mesh.data * mesh.fsdp = "
            f"{accumulate} * {parts}, so that every device has equal shares",
            field="train.batch_size",
            found=size,
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First dimension cut into `batch_parts`."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def place(tree: Tree, sharding: Sharding) -> Tree:
    """Puts a tree of arrays onto devices, also those of other processes, which must call it with equal arrays."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def onto(array: Any) -> jax.Array:
        # Not device_put, which would first send every array around to see whether they are equal.
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(onto, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
