"""The block cache: an evaluation may reuse what the middle blocks added to both streams in an earlier one.

Features change little between neighbouring noise levels. An evaluation always computes the outer blocks. For the middle
blocks it adds the cached differences (the Delta-cache of Chen et al. 2024, arXiv 2406.01125). How much that changes the
images is measured in docs/notes/consistency.md#block-cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genaffect_jax.models.layer_stack import join_layers
from genaffect_jax.models.mmdit.attention import KeyValue

# With fewer blocks there is none between the first and the last.
FEWEST_BLOCKS = 3

# Image tokens and text tokens.
Streams = tuple[Float[Array, "G E L D"], Float[Array, "G E T D"]]
# Runs the blocks from a first one up to, and without, a last one: the streams after them, and the pool of every block
# if it is kept.
RunBlocks = Callable[[Streams, int, int], tuple[Streams, KeyValue | None]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockCache:
    """The block cache at one evaluation. The empty cache computes all blocks and returns the differences."""

    hit: Bool[Array, ""] | None = None
    """Whether to add `deltas` instead of computing the middle blocks; None: they are computed."""
    deltas: Streams | None = None
    """What the middle blocks added to the two streams when they were last computed."""


def middle_blocks(count: int) -> tuple[int, int]:
    """The first middle block and the first block after them, out of `count` blocks.

    The middle is half of the blocks: all but the first and the last quarter. The last block, after which the text
    stream ends, never belongs to it.

    Raises:
        ValueError: there are too few blocks.
    """
    first, last = max(1, count // 4), min(count - 1, count - count // 4)
    if count < FEWEST_BLOCKS:
        raise ValueError(f"block cache: a network of {count} blocks has no middle; needs at least {FEWEST_BLOCKS}")
    return first, last


def run_with_block_cache(
    run_blocks: RunBlocks, streams: Streams, count: int, cache: BlockCache
) -> tuple[Streams, KeyValue | None, Streams]:
    """Runs all `count` blocks, of which the middle ones may come from the cache.

    Returns:
        The streams after the last block; the pool of every block, if it is kept; what the middle blocks added, for the
        next evaluation.

    Raises:
        ValueError: there are too few blocks.
    """
    first, last = middle_blocks(count)
    streams, before = run_blocks(streams, 0, first)
    streams, between, deltas = _run_middle_blocks(run_blocks, streams, first, last, cache)
    streams, after = run_blocks(streams, last, count)
    return streams, join_layers(before, between, after), deltas


def _run_middle_blocks(
    run_blocks: RunBlocks, streams: Streams, first: int, last: int, cache: BlockCache
) -> tuple[Streams, KeyValue | None, Streams]:
    """The streams after the middle blocks, the pool of these blocks, and what they added."""

    def compute() -> tuple[Streams, KeyValue | None, Streams]:
        after, pool = run_blocks(streams, first, last)
        return after, pool, jax.tree.map(jnp.subtract, after, streams)

    def reuse() -> tuple[Streams, KeyValue | None, Streams]:
        assert cache.deltas is not None
        # The pool of skipped blocks is never read: images that use it skip the same blocks in the same evaluation.
        pool = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute)[1])
        return jax.tree.map(jnp.add, streams, cache.deltas), pool, cache.deltas

    return compute() if cache.hit is None else jax.lax.cond(cache.hit, reuse, compute)
