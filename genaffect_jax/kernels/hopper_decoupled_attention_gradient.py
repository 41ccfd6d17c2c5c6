"""The backward kernels of `kernels.decoupled_attention` for NVIDIA Hopper GPUs.

As in the forward kernel, a program computes one head of one image with all its tokens in shared memory. One kernel goes
through the queries, the other through the keys; both compute the weights again from the log-sum-exps. In one kernel,
too few registers would be left to run products side by side. Every sum has a fixed order, so that the gradients of
equal inputs are equal to the bit.
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

from genaffect_jax.kernels.hopper_decoupled_attention import (
    EXPRESSION,
    IDENTITY,
    JOINT,
    WARPGROUPS,
    Operands,
    Places,
    copy_tiles,
    inverse_rms,
    normalise_all,
    rounds,
    tiles_of,
)
from genaffect_jax.kernels.hopper_tiles import (
    TILE,
    add_product,
    along,
    load,
    meet,
    places_along,
    products,
    rows,
    shared,
    transposed,
)

# Scores are in powers of two.
LN2 = math.log(2.0)

Statistics = Float32[Array, "P N 3 L+64"]
Pair = tuple[Float[Array, "P L C"], Float[Array, "P T C"]]


class Gradients(NamedTuple):
    """The gradients of `Operands`."""

    query: Float[Array, "P L C"]
    key_value: Float[Array, "P L 2*C"]
    query_scale: Float32[Array, "P N L/64 64"]
    """The part of each tile, as that of the keys' scale."""
    key_scale: Float32[Array, "P N L/64 64"]
    text_query: Float[Array, "P T C"]
    own_key: Float[Array, "P M C"]
    own_value: Float[Array, "P M C"]
    identity_key: Float[Array, "P K C"]
    """The part of each image, as that of the values."""
    identity_value: Float[Array, "P K C"]


# Compiled by itself, so that the kernels are lowered once for all layers.
@partial(jax.jit, static_argnums=4)
def backward(operands: Operands, mixed: Pair, lse: Statistics, gradient: Pair, expression: int) -> Gradients:
    """Runs both kernels.

    Args:
        operands: those of the forward kernel.
        mixed, lse: its results.
        gradient: the gradients of `mixed`.
        expression: number of expression keys J.
    """
    query, text_query, query_scale, means = _query_gradients(operands, mixed, lse, gradient, expression)
    key_value, key_scale, *others = _key_gradients(operands, lse, means, gradient)
    return Gradients(query, key_value, query_scale, key_scale, text_query, *others)


class _Scratch:
    """One tile of shared memory of each warpgroup, through which it reads and writes arrays."""

    def __init__(self, tiles: Any, there: Any, ones: Any) -> None:
        warpgroup = lax.axis_index("warpgroup")
        self.tile, self.there, self.ones = tiles.at[warpgroup], there.at[warpgroup], ones

    def read(self, source: Any) -> Array:
        plgpu.commit_smem()  # until all threads have read what was there
        plgpu.copy_gmem_to_smem(source, self.tile, self.there)
        plgpu.barrier_wait(self.there)
        return load(self.tile)

    def write(self, tile: Array, target: Any) -> None:
        """Rows beyond the end of the target are not written."""
        self._fill(tile)
        plgpu.copy_smem_to_gmem(self.tile, target)
        plgpu.wait_smem_to_gmem(0)

    def sum_of_rows(self, tile: Array) -> Array:
        """As a product with ones: a sum over axis 0 would go through memory that all warpgroups share."""
        self._fill(tile)
        (summed,) = products((transposed(self.tile), self.ones))
        return jnp.max(summed, axis=1)  # its columns are equal

    def through_norm(self, gradient: Array, source: Any, scale: Array, target: Any, of_scale: Any) -> None:
        """Writes the gradient of a norm's input, and this tile's part of the gradient of the norm's scale."""
        raw = self.read(source)
        inverse = along(inverse_rms(raw), 0)
        unit = raw * inverse
        of_scale[...] = self.sum_of_rows(gradient * unit)
        scaled = gradient * along(scale, 1)
        along_unit = along(jnp.sum(scaled * unit, axis=1) * (1.0 / TILE), 0)
        self.write(inverse * (scaled - unit * along_unit), target)

    def _fill(self, tile: Array) -> None:
        plgpu.commit_smem()
        self.tile[...] = tile.astype(self.tile.dtype)
        plgpu.commit_smem()


def _begin(
    place: Places,
    given: Operands,
    gradient: tuple[Any, Any],
    tiles: tuple[Any, Any, Any, Any],
    ones: Any,
    barriers: tuple[Any, Any, Any],
    copy_more: Callable[[Any], None] = lambda there: None,
) -> None:
    """Brings all tiles of a program into shared memory, queries and keys normalised, and fills a tile with ones.

    Args:
        place, given: the program's.
        gradient: those of the results for image and text.
        tiles: where queries, keys, values and incoming gradients go.
        ones: the tile for ones.
        barriers: of queries and keys; of all else; of the warpgroups.
        copy_more: begins further copies, which arrive at the barrier it is given.
    """
    (queries, keys, values, douts), (first_there, rest_there, normed) = tiles, barriers

    @pl.when(lax.axis_index("warpgroup") == 0)
    def _() -> None:
        copy_tiles(place, given, queries, keys, values, first_there, rest_there)
        for i in range(place.tiles):
            plgpu.copy_gmem_to_smem(place.tokens(gradient[0], i), douts.at[i], rest_there)
        plgpu.copy_gmem_to_smem(place.tokens(gradient[1]), douts.at[place.tiles], rest_there)
        copy_more(rest_there)

    plgpu.barrier_wait(first_there)
    normalise_all(given, queries, keys, place.tiles)

    @pl.when(lax.axis_index("warpgroup") == WARPGROUPS - 1)
    def _() -> None:
        ones[...] = plgpu.layout_cast(jnp.ones((TILE, TILE), jnp.float32), plgpu.Layout.WGMMA).astype(ones.dtype)

    meet(normed)
    plgpu.barrier_wait(rest_there)


def _run(kernel: Any, operands: Operands, arguments: tuple[Any, ...], out_type: Any, statistics: int) -> Any:
    """Runs a kernel `(operands, arguments, results, tiles, scratch, statistics, barriers)` for all heads and images.

    Each of so many `statistics` is an array [3, L + 64] in shared memory, copied there tile by tile.
    """
    images, length, width = operands.query.shape
    dtype, tiles = operands.query.dtype, tiles_of(operands)
    copies = statistics * 3 * (tiles + 1)
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        scratch_types=[
            shared(tiles + 1, dtype),
            shared(tiles + 2, dtype),
            shared(tiles + 2, dtype),
            shared(tiles + 1, dtype),
            shared(WARPGROUPS, dtype),
            shared(1, dtype),
            *[plgpu.SMEM((3, length + TILE), jnp.float32)] * statistics,
            plgpu.Barrier(num_arrivals=2 * tiles + 3),
            plgpu.Barrier(num_arrivals=2 * tiles + 3 + copies),
            plgpu.Barrier(num_barriers=WARPGROUPS),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ],
        grid=(width // TILE, images),
        grid_names=("head", "image"),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(*operands, *arguments)


def _query_gradients(operands: Operands, mixed: Pair, lse: Statistics, gradient: Pair, expression: int) -> Any:
    """Gradients of the queries, and for each query and softmax the mean of the weights' gradients."""
    images, _, width = operands.query.shape
    dtype, tiles, text = operands.query.dtype, tiles_of(operands), operands.text_query.shape[1]
    seen = operands.identity_key.shape[1]

    def kernel(*refs: Any) -> None:
        given, (out, out_text, lse_of, dout, dout_text) = Operands(*refs[:8]), refs[8:13]
        made, made_text, made_scales, means = refs[13:17]
        queries, keys, values, douts, scratches, ones = refs[17:23]
        first_there, rest_there, scratch_there, normed = refs[-4:]
        place, scratch = Places.of(operands), _Scratch(scratches, scratch_there, ones.at[0])

        tiles_there = (queries, keys, values, douts)
        _begin(place, given, (dout, dout_text), tiles_there, ones.at[0], (first_there, rest_there, normed))

        def of_queries(i: Any, of_image: bool) -> None:
            def statistic(ref: Any, softmax: int) -> Any:
                return ref.at[place.image, place.head, softmax, rows(i)]

            def lse_along(softmax: int) -> Array:
                return along(load(statistic(lse_of, softmax), axis=0), 0)

            # Of all softmaxes together: the sum over keys of weights times their gradients.
            all_means = scratch.read(place.tokens(out, i) if of_image else place.tokens(out_text)) * load(douts.at[i])
            mean = jnp.sum(all_means, axis=1)

            def of_keys(tile: Any) -> tuple[Array, ...]:
                """Scores of a tile of keys, and the gradients of their weights."""
                return products((queries.at[i], transposed(keys.at[tile])), (douts.at[i], transposed(values.at[tile])))

            def over_keys(total: Any) -> Array:
                def add(weights: Array, change: Array, mean: Array, tile: Any) -> None:
                    add_product(total, (weights * (change - mean)).astype(dtype), keys.at[tile])

                joint_mean, column = mean, places_along(1)
                if of_image:
                    scores, change = of_keys(tiles + 1)
                    weights = jnp.exp2(scores - lse_along(IDENTITY))
                    if seen < TILE:
                        weights = jnp.where(column < seen, weights, 0.0)
                    identity_mean = jnp.sum(weights * change, axis=1)
                    statistic(means, IDENTITY)[...] = identity_mean
                    add(weights, change, along(identity_mean, 0), tiles + 1)
                    scores, change = of_keys(0)
                    weights = jnp.exp2(scores - jnp.where(column < text, lse_along(JOINT), lse_along(EXPRESSION)))
                    weights = jnp.where(column < text + expression, weights, 0.0)
                    expression_mean = jnp.sum(jnp.where(column < text, 0.0, weights * change), axis=1)
                    statistic(means, EXPRESSION)[...] = expression_mean
                    joint_mean = mean - identity_mean - expression_mean
                    means_along = jnp.where(column < text, along(joint_mean, 0), along(expression_mean, 0))
                else:
                    scores, change = of_keys(0)
                    weights = jnp.where(column < text, jnp.exp2(scores - lse_along(JOINT)), 0.0)
                    means_along = along(joint_mean, 0)
                statistic(means, JOINT)[...] = joint_mean
                add(weights, change, means_along, 0)
                joint = load(statistic(lse_of, JOINT), axis=0)

                @pl.loop(jnp.int32(1), jnp.int32(tiles + 1))
                def image_keys(tile: Any) -> None:
                    scores, change = of_keys(tile)
                    add(jnp.exp2(scores - along(joint, 0)), change, along(joint_mean, 0), tile)

                return total[...]

            gradient = pl.run_scoped(over_keys, plgpu.ACC((TILE, TILE), jnp.float32)) * LN2
            if of_image:
                source, scale = place.tokens(given.query, i), load(given.scales, (0,), axis=1)
                of_scale = made_scales.at[place.image, place.head, i]
                scratch.through_norm(gradient, source, scale, place.tokens(made, i), of_scale)
            else:
                scratch.write(gradient, place.tokens(made_text))

        rounds(tiles, lambda i: of_queries(i, True))
        pl.when(lax.axis_index("warpgroup") == tiles % WARPGROUPS)(lambda: of_queries(tiles, False))

    out_type = (
        jax.ShapeDtypeStruct(operands.query.shape, dtype),
        jax.ShapeDtypeStruct(operands.text_query.shape, dtype),
        jax.ShapeDtypeStruct((images, width // TILE, tiles, TILE), jnp.float32),
        jax.ShapeDtypeStruct(lse.shape, jnp.float32),
    )
    return _run(kernel, operands, (*mixed, lse, *gradient), out_type, statistics=0)


def _key_gradients(operands: Operands, lse: Statistics, means: Statistics, gradient: Pair) -> Any:
    """Gradients of keys and values; keys run along axis 0 here, queries along axis 1."""
    images, _, width = operands.query.shape
    dtype, tiles, text = operands.query.dtype, tiles_of(operands), operands.text_query.shape[1]

    def kernel(*refs: Any) -> None:
        given, (lse_of, means_of, dout, dout_text) = Operands(*refs[:8]), refs[8:12]
        made, made_scales, own_key, own_value, identity_key, identity_value = refs[12:18]
        queries, keys, values, douts, scratches, ones, lses, mean = refs[18:26]
        first_there, rest_there, scratch_there, normed = refs[26:]
        place, scratch = Places.of(operands), _Scratch(scratches, scratch_there, ones.at[0])

        def copy_statistics(there: Any) -> None:
            for softmax in (JOINT, IDENTITY, EXPRESSION):
                for i in range(tiles + 1):
                    for source, target in ((lse_of, lses), (means_of, mean)):
                        part = source.at[place.image, place.head, softmax, rows(i)]
                        plgpu.copy_gmem_to_smem(part, target.at[softmax, rows(i)], there)

        tiles_there = (queries, keys, values, douts)
        barriers = (first_there, rest_there, normed)
        _begin(place, given, (dout, dout_text), tiles_there, ones.at[0], barriers, copy_statistics)

        def of_keys(tile: Any, softmax: int) -> tuple[Array, Array]:
            """Gradients of a tile of keys and its values. EXPRESSION stands for the tile of text and expression."""
            own = softmax == EXPRESSION

            def over_queries(dkey: Any, dvalue: Any) -> tuple[Array, Array]:
                def step(i: Any, of_image: bool) -> None:
                    def statistic(ref: Any) -> Array:
                        found = along(load(ref, (JOINT if own else softmax, rows(i)), axis=1), 1)
                        if not own or not of_image:
                            return found
                        return jnp.where(
                            places_along(0) < text, found, along(load(ref, (EXPRESSION, rows(i)), axis=1), 1)
                        )

                    # One product after the other: there are no registers for both results beside two accumulators.
                    lse = statistic(lses)
                    (scores,) = products((keys.at[tile], transposed(queries.at[i])))
                    weights = jnp.exp2(scores - lse)
                    if own and not of_image:  # text does not see the expression
                        weights = jnp.where(places_along(0) < text, weights, 0.0)
                    add_product(dvalue, weights.astype(dtype), douts.at[i])
                    (change,) = products((values.at[tile], transposed(douts.at[i])))
                    add_product(dkey, (weights * (change - statistic(mean))).astype(dtype), queries.at[i])

                pl.loop(jnp.int32(0), jnp.int32(tiles))(lambda i: step(i, True))
                if softmax != IDENTITY:
                    step(tiles, False)
                return dkey[...] * LN2, dvalue[...]

            total = plgpu.ACC((TILE, TILE), jnp.float32)
            return pl.run_scoped(over_queries, total, total)

        def of_image(i: Any) -> None:
            dkey, dvalue = of_keys(i + 1, JOINT)
            scratch.write(dvalue, place.tokens(made, i, 1, 2))
            source, target = (place.tokens(ref, i, 0, 2) for ref in (given.key_value, made))
            scale, of_scale = load(given.scales, (1,), axis=1), made_scales.at[place.image, place.head, i]
            scratch.through_norm(dkey, source, scale, target, of_scale)

        def of_others(tile: int, softmax: int, key: Any, value: Any) -> None:
            for gradient, target in zip(of_keys(tile, softmax), (key, value), strict=True):
                scratch.write(gradient, place.tokens(target))

        rounds(tiles, of_image)
        warpgroup = lax.axis_index("warpgroup")
        pl.when(warpgroup == tiles % WARPGROUPS)(lambda: of_others(tiles + 1, IDENTITY, identity_key, identity_value))
        pl.when(warpgroup == (tiles + 1) % WARPGROUPS)(lambda: of_others(0, EXPRESSION, own_key, own_value))

    out_type = (
        jax.ShapeDtypeStruct(operands.key_value.shape, dtype),
        jax.ShapeDtypeStruct((images, width // TILE, tiles, TILE), jnp.float32),
        *(
            jax.ShapeDtypeStruct((images, *x.shape[1:]), dtype)
            for x in (operands.own_key, operands.own_value, operands.identity_key, operands.identity_value)
        ),
    )
    return _run(kernel, operands, (lse, means, *gradient), out_type, statistics=2)
