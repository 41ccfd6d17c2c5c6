"""The kernel of `kernels.token_reduce` for NVIDIA Hopper GPUs.

A program reads the tokens of a strip of 64 features tile by tile through shared memory. TMA copies the next tiles in
and finished tiles out while one warpgroup computes. Sums are accumulated in registers and written once, at the end of
the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from genaffect_jax.kernels.token_reduce_reference import STRIP, TokenFunction

# Tokens per tile, as wgmma's register layout requires, and rows per piece of a tile that TMA copies.
TILE, ROWS = 64, 8
# Tiles in flight: of all inputs together, and of each output.
TILES_IN, TILES_OUT = 8, 2
# Lower bound of the number of programs: several for each of the 132 multiprocessors, whose speeds differ.
PROGRAMS = 1024


# Compiled by itself, so that a kernel that a program calls many times is lowered once.
@partial(jax.jit, static_argnums=(0, 4, 5))
def hopper_token_reduce(
    function: TokenFunction,
    tokens: Sequence[Float[Array, "P L C"]],
    vectors: Sequence[Float[Array, "P C"]],
    numbers: Sequence[Float[Array, "P L"]],
    outputs: int,
    sums: int,
) -> tuple[list[Float[Array, "P L C"]], list[Float32[Array, "P C"]]]:
    """`token_reduce` for half-precision tokens, C a multiple of 64, and groups of 64 features or none."""
    (images, seen, width), dtype = tokens[0].shape, tokens[0].dtype
    tokens = [jnp.pad(x, ((0, 0), (0, -seen % ROWS), (0, 0))) for x in tokens]
    length = tokens[0].shape[1]
    tiles, strips = pl.cdiv(length, TILE), width // STRIP
    part = pl.cdiv(tiles, pl.cdiv(PROGRAMS, strips * images))
    parts, stages = pl.cdiv(tiles, part), min(max(TILES_IN // len(tokens), 3), part)
    transforms = (plgpu.TilingTransform((ROWS, STRIP)), plgpu.SwizzleTransform(128))

    def shared(count: int) -> Any:
        return plgpu.SMEM((count, TILE, STRIP), dtype, transforms=transforms)

    def kernel(*refs: Any) -> None:
        sizes = (len(tokens), len(vectors), len(numbers), outputs, sums, len(tokens), len(numbers), outputs)
        ends = list(accumulate(sizes))
        sources, of_image, of_tokens, made, summed, read, read_numbers, written = (
            refs[end - size : end] for end, size in zip(ends, sizes, strict=True)
        )
        there = refs[-1]
        strip, place, image = (lax.axis_index(name) for name in ("strip", "part", "image"))
        features = pl.ds(strip * STRIP, STRIP)
        first = place * part
        count = jnp.minimum(jnp.int32(part), jnp.int32(tiles) - first)

        def lines(i: Any) -> Any:
            return pl.ds((first + i) * TILE, TILE)

        def copy_in(i: Any) -> None:
            stage = lax.rem(i, jnp.int32(stages))
            # Tokens beyond the end arrive as zeros.
            for source, target in zip(sources, read, strict=True):
                plgpu.copy_gmem_to_smem(source.at[image, lines(i), features], target.at[stage], there.at[stage])
            for source, target in zip(of_tokens, read_numbers, strict=True):
                plgpu.copy_gmem_to_smem(source.at[image, lines(i)], target.at[stage], there.at[stage])

        for i in range(stages):
            pl.when(i < count)(partial(copy_in, jnp.int32(i)))

        def load(x: Any, index: Any, axis: int) -> Array:
            """A vector, repeated along the other axis of a tile."""
            vector = plgpu.load(x, index, layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)
            return lax.broadcast_in_dim(vector, (TILE, STRIP), (axis,))

        spread = [load(x, (image, features), 1) for x in of_image]

        def step(i: Any, totals: tuple[Array, ...]) -> tuple[Array, ...]:
            stage, slot = lax.rem(i, jnp.int32(stages)), lax.rem(i, jnp.int32(TILES_OUT))
            plgpu.barrier_wait(there.at[stage])
            tile = [plgpu.load(x.at[stage], (), layout=plgpu.Layout.WGMMA).astype(jnp.float32) for x in read]
            new, terms = function(tile, spread, [load(x.at[stage], (), 0) for x in read_numbers])
            plgpu.wait_smem_to_gmem(TILES_OUT - 1, wait_read_only=True)
            for target, x in zip(written, new, strict=True):
                target[slot] = x.astype(dtype)
            # Waits until all threads have read their inputs and written their outputs.
            plgpu.commit_smem()
            for source, target in zip(written, made, strict=True):
                plgpu.copy_smem_to_gmem(source.at[slot], target.at[image, lines(i), features], commit_group=False)
            plgpu.commit_smem_to_gmem_group()
            pl.when(i + stages < count)(lambda: copy_in(i + stages))
            return tuple(total + term for total, term in zip(totals, terms, strict=True))

        zeros = plgpu.layout_cast(jnp.zeros((TILE, STRIP), jnp.float32), plgpu.Layout.WGMMA)
        for target, total in zip(summed, lax.fori_loop(jnp.int32(0), count, step, (zeros,) * sums), strict=True):
            target[image, place, features] = jnp.sum(total, axis=0)
        plgpu.wait_smem_to_gmem(0)

    numbers = [jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -seen % TILE))) for x in numbers]
    out = plgpu.kernel(
        kernel,
        out_type=[
            *[jax.ShapeDtypeStruct((images, length, width), dtype)] * outputs,
            *[jax.ShapeDtypeStruct((images, parts, width), jnp.float32)] * sums,
        ],
        scratch_types=[
            *[shared(stages)] * len(tokens),
            *[plgpu.SMEM((stages, TILE), jnp.float32)] * len(numbers),
            *[shared(TILES_OUT)] * outputs,
            plgpu.Barrier(num_arrivals=len(tokens) + len(numbers), num_barriers=stages),
        ],
        grid=(strips, parts, images),
        grid_names=("strip", "part", "image"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(*tokens, *(x.astype(jnp.float32) for x in vectors), *numbers)
    return [x[:, :seen] for x in out[:outputs]], [x.sum(axis=1) for x in out[outputs:]]
