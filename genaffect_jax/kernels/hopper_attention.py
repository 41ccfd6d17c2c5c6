"""Max-free softmax attention on NVIDIA Hopper GPUs: one pass over several arrays of keys, for scores of known bound.

Softmax does not change when the same number is added to all scores of a query. Flash attention subtracts a running
maximum only to stay within the range of float32, at the price of a maximum over every block, a rescaling of the sums,
and a wait between the scores and their exponentials. Scores of RMS-normalised queries and keys have a bound that the
learned scales alone decide (`models.mmdit.score_bound`). Within `LARGEST_SCORE`, the exponentials and all their sums
are normal float32 numbers. Nothing needs to be subtracted, and the result is exact softmax.

Consistent attention gains twice: own keys and pool enter one softmax, so that nothing is merged, and neither array is
copied.

The kernel is warp-specialised like FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608): one warpgroup copies keys and
values, three compute. Each of them starts the product with the values of one block together with the scores of the
next. Measurements are in docs/notes/sampling_speed.md#consistent-attention-on-one-gpu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

HEAD_SIZE = 64

# Queries per computing warpgroup, as wgmma requires, and keys per block. Three warpgroups with blocks of 128 need 160
# registers per thread, exactly the limit; the copying warpgroup needs few.
BLOCK_Q = 64
BLOCK_KEYS = 128
WARPGROUPS = 3
COMPUTE_REGISTERS = 160
COPY_REGISTERS = 32
# Blocks of keys, and as many of values, in shared memory.
STAGES = 2
# Rows per tile; TMA copies whole tiles.
ROWS = 8


def max_free_attention(
    query: Float[Array, "B Q N 64"], sources: Sequence[tuple[Float[Array, "b K N 64"], Float[Array, "b K N 64"]]]
) -> Float[Array, "B Q N 64"]:
    """Attention of each query to the keys of all sources together, as if they were one sequence.

    Args:
        query: bfloat16 or float16. Every score, divided by the square root of the head size, must lie within
            `models.mmdit.score_bound.LARGEST_SCORE`. This is not checked; larger scores overflow.
        sources: keys and values of any lengths above 0. Each entry of a source with fewer entries b than the queries' B
            serves B / b consecutive entries, as a pool serves the images of its group.

    Raises:
        ValueError: another head size or type, no keys, or entries that do not divide.
    """
    batch, length, heads, size = query.shape
    if size != HEAD_SIZE or query.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"max-free attention: {query.dtype} heads of {size}, must be half precision of {HEAD_SIZE}")
    if not sources or any(not k.shape[1] or batch % k.shape[0] for k, _ in sources):
        raise ValueError(f"max-free attention: keys {[k.shape for k, _ in sources]} for a batch of {batch}")
    # The device computes powers of two. The queries take the factor log2(e), once for all keys.
    scaled = (query.astype(jnp.float32) * (math.log2(math.e) / math.sqrt(size))).astype(query.dtype)
    scaled = _whole_rows(scaled)
    arrays = [_whole_rows(x) for source in sources for x in source]
    lengths = [k.shape[1] for k, _ in sources]
    repeats = [batch // k.shape[0] for k, _ in sources]
    stages = min(STAGES, sum(pl.cdiv(n, BLOCK_KEYS) for n in lengths))

    transforms = (plgpu.TilingTransform((ROWS, 64)), plgpu.SwizzleTransform(128))

    def shared(*shape: int) -> Any:
        return plgpu.SMEM(shape, query.dtype, transforms=transforms)

    blocks, free = shared(stages, BLOCK_KEYS, size), plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages)
    there = plgpu.Barrier(num_barriers=stages)
    out = plgpu.kernel(
        _make_kernel(scaled.shape[1], lengths, repeats, stages),
        out_type=jax.ShapeDtypeStruct(scaled.shape, query.dtype),
        scratch_types=[
            shared(WARPGROUPS, BLOCK_Q, size),
            blocks,
            blocks,
            plgpu.Barrier(num_barriers=WARPGROUPS),
            there,
            there,
            free,
            free,
        ],
        # Heads run fastest, so that all tiles of queries read the keys of one head from the cache.
        grid=(heads, pl.cdiv(scaled.shape[1], WARPGROUPS * BLOCK_Q), batch),
        grid_names=("heads", "tiles", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(scaled, *arrays)
    return out[:, :length]


def _whole_rows(x: Float[Array, "B S N H"]) -> Float[Array, "B S+p N H"]:
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % ROWS), (0, 0), (0, 0)])


def _make_kernel(rows: int, lengths: Sequence[int], repeats: Sequence[int], stages: int) -> Callable[..., None]:
    """The kernel for `rows` queries (whole tiles of rows) and sources of these lengths.

    Blocks are numbered through all sources; block i lies in stage `i % stages`.
    """
    counts = [pl.cdiv(n, BLOCK_KEYS) for n in lengths]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    total = sum(counts)

    def stage_of(block: Any) -> Any:
        return lax.rem(block, jnp.int32(stages))

    def copy(sources: Sequence[tuple[Any, Any]], keys: Any, values: Any, barriers: Sequence[Any]) -> None:
        """The copying warpgroup: copies blocks as soon as their stages are free."""
        keys_there, values_there, keys_free, values_free = barriers
        head, batch = lax.axis_index("heads"), lax.axis_index("batch")
        for (key, value), start, count, repeat in zip(sources, starts, counts, repeats, strict=True):
            row = lax.div(batch, jnp.int32(repeat)) if repeat > 1 else batch

            @pl.loop(start, start + count)
            def _(block: Any, key: Any = key, value: Any = value, start: int = start, row: Any = row) -> None:
                stage = stage_of(block)
                place = (row, pl.ds((block - start) * BLOCK_KEYS, BLOCK_KEYS), head)
                # Rows beyond the end arrive as zeros.
                pl.when(block >= stages)(lambda: plgpu.barrier_wait(keys_free.at[stage]))
                plgpu.copy_gmem_to_smem(key.at[place], keys.at[stage], keys_there.at[stage])
                pl.when(block >= stages)(lambda: plgpu.barrier_wait(values_free.at[stage]))
                plgpu.copy_gmem_to_smem(value.at[place], values.at[stage], values_there.at[stage])

    def idle(barriers: Sequence[Any]) -> None:
        """A computing warpgroup whose queries all lie beyond the end: it only frees stages."""
        keys_there, values_there, keys_free, values_free = barriers

        @pl.loop(0, total)
        def _(block: Any) -> None:
            stage = stage_of(block)
            for there, free in ((keys_there, keys_free), (values_there, values_free)):
                plgpu.barrier_wait(there.at[stage])
                plgpu.barrier_arrive(free.at[stage])

    def compute(query: Any, keys: Any, values: Any, barriers: Sequence[Any]) -> Array:
        """The attention of one warpgroup's queries."""
        keys_there, values_there, keys_free, values_free = barriers
        scores_type = plgpu.ACC((BLOCK_Q, BLOCK_KEYS), jnp.float32)

        def transposed(stage: Any) -> Any:
            return plgpu.transpose_ref(keys.at[stage], (1, 0))

        def weigh(scores: Array, sums: Array, seen: int | None) -> tuple[Array, Array]:
            """The weights of a block, of which the first `seen` keys count (None: all), and the updated sums.

            Each of 8 columns of sums adds up every eighth column of weights, which lies in the same registers. Threads
            exchange sums only once, at the end.
            """
            weights = jnp.exp2(scores)
            if seen is not None:
                columns = plgpu.broadcasted_iota(jnp.int32, weights.shape, 1, layout=plgpu.Layout.WGMMA)
                weights = jnp.where(columns < seen, weights, 0.0)
            for column in range(0, BLOCK_KEYS, 8):
                sums = sums + weights[:, column : column + 8]
            return weights.astype(query.dtype), sums

        def over_blocks(out: Any) -> tuple[Array, Array]:
            def first(scores: Any) -> Array:
                plgpu.barrier_wait(keys_there.at[0])
                plgpu.wgmma(scores, query, transposed(0))
                return scores[...]

            def step(block: Any, carry: tuple[Array, Array], seen: int | None = None) -> tuple[Array, Array]:
                weights, sums = carry
                stage, before = stage_of(block), stage_of(block - 1)
                plgpu.barrier_wait(keys_there.at[stage])
                plgpu.barrier_wait(values_there.at[before])

                def both(scores: Any) -> Array:
                    # In this order the weights are in their registers before the first product starts. In the other
                    # order the compiler runs the two products one after the other.
                    plgpu.wgmma(out, weights, values.at[before])
                    plgpu.wgmma(scores, query, transposed(stage))
                    return scores[...]

                scores = pl.run_scoped(both, scores_type)
                plgpu.barrier_arrive(keys_free.at[stage])
                plgpu.barrier_arrive(values_free.at[before])
                return weigh(scores, sums, seen)

            scores = pl.run_scoped(first, scores_type)
            plgpu.barrier_arrive(keys_free.at[0])
            zeros = plgpu.layout_cast(jnp.zeros((BLOCK_Q, 8), jnp.float32), plgpu.Layout.WGMMA)
            carry = weigh(scores, zeros, lengths[0] if lengths[0] < BLOCK_KEYS else None)
            for start, length in zip(starts, lengths, strict=True):
                whole, rest = divmod(length, BLOCK_KEYS)
                if start + whole > max(start, 1):
                    carry = lax.fori_loop(jnp.int32(max(start, 1)), jnp.int32(start + whole), step, carry)
                if rest and start + whole >= 1:
                    carry = step(jnp.int32(start + whole), carry, rest)
            weights, sums = carry
            last = (total - 1) % stages
            plgpu.barrier_wait(values_there.at[last])
            plgpu.wgmma(out, weights, values.at[last])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(values_free.at[last])
            return out[...], sums.sum(axis=1)

        mixed, sums = pl.run_scoped(over_blocks, plgpu.ACC((BLOCK_Q, HEAD_SIZE), jnp.float32))
        return mixed / lax.broadcast_in_dim(sums, mixed.shape, [0])

    def kernel(query_ref: Any, *refs: Any) -> None:
        sources = [(refs[2 * i], refs[2 * i + 1]) for i in range(len(lengths))]
        out_ref, queries, keys, values, query_there, *barriers = refs[2 * len(lengths) :]
        head, tile, batch = (lax.axis_index(name) for name in ("heads", "tiles", "batch"))
        warpgroup = lax.axis_index("warpgroup")
        first_row = (tile * WARPGROUPS + warpgroup) * BLOCK_Q
        computes = warpgroup < WARPGROUPS

        @pl.when(computes & (first_row < rows))
        def _() -> None:
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            query, place = queries.at[warpgroup], (batch, pl.ds(first_row, BLOCK_Q), head)
            plgpu.copy_gmem_to_smem(query_ref.at[place], query, query_there.at[warpgroup])
            plgpu.barrier_wait(query_there.at[warpgroup])
            query[...] = compute(query, keys, values, barriers).astype(query_ref.dtype)
            plgpu.commit_smem()
            # Rows beyond the end are not written.
            plgpu.copy_smem_to_gmem(query, out_ref.at[place])
            plgpu.wait_smem_to_gmem(0)

        pl.when(computes & (first_row >= rows))(lambda: idle(barriers))

        @pl.when(warpgroup == WARPGROUPS)
        def _() -> None:
            plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
            copy(sources, keys, values, barriers)

    return kernel
