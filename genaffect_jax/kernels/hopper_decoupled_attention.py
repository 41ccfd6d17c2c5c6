"""The forward kernel of `kernels.decoupled_attention` for NVIDIA Hopper GPUs, and what the backward ones share with it.

A program computes one head of one image. The image's queries, keys and values, at most a few hundred of each, lie in
shared memory together. Every key is thus read and normalised once, and scores never leave the registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from genaffect_jax.kernels.hopper_tiles import (
    TILE,
    along,
    load,
    meet,
    places_along,
    products,
    rows,
    shared,
    transposed,
)
from genaffect_jax.kernels.norms import NORM_EPS

# Scores are in powers of two: the factor of the queries, for heads of 64.
QUERY_FACTOR = math.log2(math.e) / math.sqrt(TILE)
# The three softmaxes, in the order of the statistics.
JOINT, IDENTITY, EXPRESSION = 0, 1, 2
# Warpgroups of a program; each has up to 168 registers a thread.
WARPGROUPS = 3


class Operands(NamedTuple):
    """What the kernels read."""

    query: Float[Array, "P L C"]
    """Queries of the image tokens, before their norm."""
    key_value: Float[Array, "P L 2*C"]
    """Keys, before their norm, and values of the image tokens."""
    scales: Float32[Array, "2 64"]
    """Learned scales of the norms: of queries (with `QUERY_FACTOR`) and of keys."""
    text_query: Float[Array, "P T C"]
    """Normalised queries of the text tokens, with `QUERY_FACTOR`."""
    own_key: Float[Array, "P M C"]
    """Other keys of each image: T of the text, then J of the expression."""
    own_value: Float[Array, "P M C"]
    """Their values."""
    identity_key: Float[Array, "G K C"]
    """Keys of the identity tokens, shared by P / G consecutive images."""
    identity_value: Float[Array, "G K C"]
    """Their values."""


class Places(NamedTuple):
    """Where a program finds its part of the arrays, and the order of tiles in shared memory.

    Tile 0 of keys and values is that of text and expression, 1 to `tiles` are those of the image, the last is that of
    the identity. Queries have the text tile last.
    """

    image: Any
    head: Any
    group: Any
    tiles: int

    @classmethod
    def of(cls, operands: Operands) -> Places:
        """Inside a kernel: the places of this program."""
        share = operands.query.shape[0] // operands.identity_key.shape[0]
        image = lax.axis_index("image")
        return cls(image, lax.axis_index("head"), lax.div(image, jnp.int32(share)), tiles_of(operands))

    def tokens(self, ref: Any, tile: Any = 0, part: int = 0, parts: int = 1) -> Any:
        """A tile of an array [P, tokens, parts * C]."""
        columns = part * (ref.shape[2] // parts) + self.head * TILE
        return ref.at[self.image, rows(tile), pl.ds(columns, TILE)]

    def of_group(self, ref: Any) -> Any:
        """The tile of an array [G, K, C]."""
        return ref.at[self.group, rows(0), pl.ds(self.head * TILE, TILE)]


def tiles_of(operands: Operands) -> int:
    """Tiles of image tokens."""
    return operands.query.shape[1] // TILE


def inverse_rms(raw: Float32[Array, "64 64"]) -> Float32[Array, " 64"]:
    """The factor of each row in `kernels.norms.rms_norm`, without the learned scale."""
    return lax.rsqrt(jnp.sum(raw * raw, axis=1) * (1.0 / TILE) + NORM_EPS)


def rounds(count: int, work: Callable[[Any], None], first: int = 0) -> None:
    """`work(i)` for i from `first` to `count - 1`, divided among the warpgroups."""
    for start in range(first, count, WARPGROUPS):
        item = start + lax.axis_index("warpgroup")
        if start + WARPGROUPS <= count:
            work(item)
        else:
            pl.when(item < count)(partial(work, item))


def copy_tiles(
    place: Places, given: Operands, queries: Any, keys: Any, values: Any, first_there: Any, values_there: Any
) -> None:
    """Copies all tiles of a program: 2 * tiles + 3 of queries and keys, then tiles + 2 of values."""
    # Rows beyond the end arrive as zeros.
    for i in range(place.tiles):
        plgpu.copy_gmem_to_smem(place.tokens(given.query, i), queries.at[i], first_there)
        plgpu.copy_gmem_to_smem(place.tokens(given.key_value, i, 0, 2), keys.at[i + 1], first_there)
    plgpu.copy_gmem_to_smem(place.tokens(given.text_query), queries.at[place.tiles], first_there)
    plgpu.copy_gmem_to_smem(place.tokens(given.own_key), keys.at[0], first_there)
    plgpu.copy_gmem_to_smem(place.of_group(given.identity_key), keys.at[place.tiles + 1], first_there)
    for i in range(place.tiles):
        plgpu.copy_gmem_to_smem(place.tokens(given.key_value, i, 1, 2), values.at[i + 1], values_there)
    plgpu.copy_gmem_to_smem(place.tokens(given.own_value), values.at[0], values_there)
    plgpu.copy_gmem_to_smem(place.of_group(given.identity_value), values.at[place.tiles + 1], values_there)


def normalise_all(given: Operands, queries: Any, keys: Any, tiles: int) -> None:
    """Normalises the image's queries and keys in place, divided among the warpgroups."""

    def normalise(tile: Any, which: int) -> None:
        raw, scale = load(tile), load(given.scales, (which,), axis=1)
        tile[...] = (raw * along(inverse_rms(raw), 0) * along(scale, 1)).astype(tile.dtype)

    rounds(tiles, lambda i: normalise(queries.at[i], 0))
    rounds(tiles + 1, lambda i: normalise(keys.at[i], 1), first=1)


# Compiled by itself, so that the kernel is lowered once for all layers.
@partial(jax.jit, static_argnums=(1, 2))
def forward(operands: Operands, text: int, expression: int) -> tuple[Array, Array, Array]:
    """Runs the kernel.

    Args:
        operands: half precision but for the scales; L is a multiple of 64, and M and K are at most 64.
        text, expression: T and J.

    Returns:
        The mixed values of image [P, L, C] and text [P, T, C], and the log-sum-exps [P, C / 64, 3, L + 64], base 2.
    """
    images, length, width = operands.query.shape
    dtype, tiles, seen = operands.query.dtype, tiles_of(operands), operands.identity_key.shape[1]
    heads = width // TILE

    def kernel(*refs: Any) -> None:
        given, (out, out_text, lse) = Operands(*refs[:8]), refs[8:11]
        queries, keys, values, first_there, values_there, normed = refs[11:]
        place = Places.of(operands)

        @pl.when(lax.axis_index("warpgroup") == 0)
        def _() -> None:
            copy_tiles(place, given, queries, keys, values, first_there, values_there)

        plgpu.barrier_wait(first_there)
        normalise_all(given, queries, keys, tiles)
        meet(normed)
        plgpu.barrier_wait(values_there)

        def joint(i: Any) -> Array:
            """The attention of a tile of queries to text and image keys."""
            query = queries.at[i]
            (scores,) = products((query, transposed(keys.at[0])))
            scores = jnp.where(places_along(1) < text, scores, -jnp.inf)
            largest = jnp.max(scores, axis=1)
            weights = jnp.exp2(scores - along(largest, 0))
            total, mixed = jnp.sum(weights, axis=1), jnp.zeros((TILE, TILE), jnp.float32)
            carry = (largest, total, weights.astype(dtype), plgpu.layout_cast(mixed, plgpu.Layout.WGMMA))

            def step(tile: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
                # The product with the values of one tile and the scores of the next start together.
                largest, total, weights, mixed = carry
                made, scores = products((weights, values.at[tile - 1]), (query, transposed(keys.at[tile])))
                larger = jnp.maximum(largest, jnp.max(scores, axis=1))
                shrink = jnp.exp2(largest - larger)
                weights = jnp.exp2(scores - along(larger, 0))
                total = total * shrink + jnp.sum(weights, axis=1)
                return larger, total, weights.astype(dtype), (mixed + made) * along(shrink, 0)

            largest, total, weights, mixed = lax.fori_loop(jnp.int32(1), jnp.int32(tiles + 1), step, carry)
            lse[place.image, place.head, JOINT, rows(i)] = largest + _log2(total)
            (made,) = products((weights, values.at[tiles]))
            return (mixed + made) * along(1.0 / total, 0)

        def branch(i: Any, tile: int, shown: Array | None, softmax: int) -> Array:
            """The attention of a tile of queries to one tile of keys, of which `shown` count (None: all)."""
            (scores,) = products((queries.at[i], transposed(keys.at[tile])))
            if shown is not None:
                scores = jnp.where(shown, scores, -jnp.inf)
            largest = jnp.max(scores, axis=1)
            weights = jnp.exp2(scores - along(largest, 0))
            total = jnp.sum(weights, axis=1)
            lse[place.image, place.head, softmax, rows(i)] = largest + _log2(total)
            return products(((weights * along(1.0 / total, 0)).astype(dtype), values.at[tile]))[0]

        def write(i: Any, mixed: Array, target: Any) -> None:
            queries[i] = mixed.astype(dtype)
            plgpu.commit_smem()
            # Rows beyond the end are not written.
            plgpu.copy_smem_to_gmem(queries.at[i], target)

        def of_image(i: Any) -> None:
            mixed, column = joint(i), places_along(1)
            mixed = mixed + branch(i, 0, (column >= text) & (column < text + expression), EXPRESSION)
            mixed = mixed + branch(i, tiles + 1, None if seen == TILE else column < seen, IDENTITY)
            write(i, mixed, place.tokens(out, i))

        rounds(tiles, of_image)
        pl.when(lax.axis_index("warpgroup") == tiles % WARPGROUPS)(
            lambda: write(tiles, joint(tiles), place.tokens(out_text))
        )
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((images, length, width), dtype),
            jax.ShapeDtypeStruct((images, text, width), dtype),
            jax.ShapeDtypeStruct((images, heads, 3, length + TILE), jnp.float32),
        ),
        scratch_types=[
            shared(tiles + 1, dtype),
            shared(tiles + 2, dtype),
            shared(tiles + 2, dtype),
            plgpu.Barrier(num_arrivals=2 * tiles + 3),
            plgpu.Barrier(num_arrivals=tiles + 2),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ],
        grid=(heads, images),
        grid_names=("head", "image"),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(*operands)


def _log2(x: Array) -> Array:
    return jnp.log(x) * math.log2(math.e)
