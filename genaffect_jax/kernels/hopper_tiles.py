"""Tiles of 64 x 64 numbers in kernels for NVIDIA Hopper GPUs: where they lie, products of them, and barriers.

A warpgroup (128 threads) holds a float32 tile in 32 registers a thread, in wgmma's layout. Factors of products lie in
shared memory, or in registers if they are the first.
"""

from __future__ import annotations

from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

# Rows and columns of every tile: wgmma's rows, and the size of a head.
TILE = 64


def rows(tile: Any) -> Any:
    """The rows of a tile."""
    return pl.ds(tile * TILE, TILE)


def shared(count: int, dtype: Any) -> Any:
    """Tiles in shared memory, in the layout that wgmma and TMA read."""
    transforms = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, TILE, TILE), dtype, transforms=transforms)


def load(ref: Any, index: Any = (), *, axis: int | None = None) -> Array:
    """A tile in wgmma's register layout, float32; or, with `axis`, a vector along that axis of a tile."""
    layout = plgpu.Layout.WGMMA if axis is None else plgpu.Layout.WGMMA.reduce(1 - axis)
    return plgpu.load(ref, index, layout=layout, optimized=axis is None).astype(jnp.float32)


def along(vector: Float32[Array, " 64"], axis: int) -> Float32[Array, "64 64"]:
    """A vector along `axis`, repeated along the other axis of a tile."""
    return lax.broadcast_in_dim(vector, (TILE, TILE), (axis,))


def places_along(axis: int) -> Array:
    """The place of every number of a tile along `axis`."""
    return plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), axis, layout=plgpu.Layout.WGMMA)


def products(*factors: tuple[Any, Any]) -> tuple[Float32[Array, "64 64"], ...]:
    """Products of tiles, all at once; the second factors lie in shared memory, the first there or in registers."""

    def into(*totals: Any) -> tuple[Array, ...]:
        for total, (a, b) in zip(totals, factors, strict=True):
            plgpu.wgmma(total, a, b)
        return tuple(total[...] for total in totals)

    return pl.run_scoped(into, *(plgpu.ACC((TILE, TILE), jnp.float32),) * len(factors))


def add_product(total: Any, a: Any, b: Any) -> None:
    """Adds a product to an accumulator; it may still run when this returns, until the accumulator is read."""
    plgpu.wgmma(total, a, b)


def transposed(tile: Any) -> Any:
    """A tile read with its axes exchanged, as a factor of a product."""
    return plgpu.transpose_ref(tile, (1, 0))


def meet(barrier: Any) -> None:
    """All warpgroups wait here for each other, and see what the others wrote to shared memory."""
    plgpu.commit_smem()
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)
