"""Partitioning of kernels that the compiler cannot cut: each device runs them on its own part of the arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from genaffect_jax.parallel.sharding import RULES, mesh_size

Axes = tuple[str | None, ...]


def run_partitioned(
    function: Callable[..., Any], arrays: tuple[Array | None, ...], axes: tuple[Axes, ...], out: Any
) -> Any:
    """`function(*arrays)`, cut over the mesh that the arrays lie on.

    A Pallas kernel is opaque to the compiler, which refuses to cut it. The result equals that of the whole arrays only
    if the function treats the entries of cut dimensions (images, heads) one by one. Arrays on one device, or inside a
    `jax.shard_map`, are passed on whole. Inside a jitted function the mesh is that of its arguments, which must have
    been placed there before the call; JAX refuses the kernel otherwise.

    Args:
        function: takes the arrays (None stays None) and returns a tree of arrays.
        arrays: the first is not None and has every logical axis; its mesh is used.
        axes: logical axes of each array (`parallel.sharding.RULES`; None: not cut). An axis whose size the mesh does
            not divide is not cut: every device then computes all of it.
        out: a tree like the result, with logical axes in place of arrays.
    """
    first = arrays[0]
    assert first is not None
    if not is_cut(first):
        return function(*arrays)
    mesh = jax.typeof(first).sharding.mesh
    sizes = dict(zip(axes[0], first.shape, strict=True))

    def spec(names: Axes) -> PartitionSpec:
        targets = (None if name is None else RULES[name] for name in names)
        return PartitionSpec(
            *(t if sizes.get(n, 0) % mesh_size(mesh, t) == 0 else None for n, t in zip(names, targets, strict=True))
        )

    given = tuple(None if x is None else spec(names) for x, names in zip(arrays, axes, strict=True))
    results = jax.tree.map(spec, out, is_leaf=_is_axes)
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=results, check_vma=False)(*arrays)


def is_cut(x: Array) -> bool:
    """Whether the compiler may cut an array over several devices, as far as a program that is traced knows.

    False on one device, inside a `jax.shard_map`, and in a jitted function whose arguments lay on no mesh.
    """
    mesh = jax.typeof(x).sharding.mesh
    return any(size > 1 and kind == AxisType.Auto for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)
