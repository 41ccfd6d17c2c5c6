"""Reuse of what the middle blocks did a moment ago: neighbouring noise levels have nearly the same features.

An evaluation of the network computes its outer blocks always, and adds to both streams what the middle blocks added in
the last evaluation that computed them (Chen et al. 2024, arXiv 2406.01125, reuse the same differences). What it changes
in the images is measured in docs/notes/consistency.md#block-cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Bool, Float

# With fewer blocks there is none between the first and the last.
FEWEST_BLOCKS = 3

StreamDeltas = tuple[Float[Array, "G E L D"], Float[Array, "G E T D"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockCache:
    """For one evaluation: whether it reuses, and what. Empty: it computes all blocks, and gives what they added."""

    now: Bool[Array, ""] | None = None
    """Take `deltas` instead of computing the middle blocks."""
    deltas: StreamDeltas | None = None
    """What the middle blocks added to the image and the text stream."""


def middle_blocks(count: int) -> tuple[int, int]:
    """The first middle block and the first after them: half of the blocks, without the first quarter and the last.

    The last block, whose text stream ends, is never one of them.

    Raises:
        ValueError: there are too few blocks.
    """
    first, last = max(1, count // 4), min(count - 1, count - count // 4)
    if count < FEWEST_BLOCKS:
        raise ValueError(f"reuse: a network of {count} blocks has no middle; needs at least {FEWEST_BLOCKS}")
    return first, last
