"""What the pictures of a set share in every layer, and which image tokens that is: consistent attention in a network.

The arithmetic is in `models.attention`; here are its inputs, one row for each layer, and the choice of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from genaffect_jax.models.attention import (
    QKV,
    KeyValue,
    Tokens,
    anchor_pool,
    consistent_attention,
    joint_attention,
)

Streams = tuple[Float[Array, "G E L N*H"], Float[Array, "G E T N*H"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharing:
    """Consistent attention of one evaluation of the network; every array has a leading axis for the layers."""

    tokens: Tokens
    """Shared tokens [layers, S] and all others [layers, L-S]."""
    active: Bool[Array, " layers"] | None = None
    """Layers in which the set shares; None: all, without a choice in the program."""
    pool: KeyValue | None = None
    """Keys and values [layers, G, K, N, H] of anchors that were drawn earlier; None: the pool is made of the first
    `anchors` pictures."""
    anchors: int = field(default=0, metadata={"static": True})
    """Pictures, the first of each group, whose tokens everybody sees; 0 with an earlier pool."""
    share_text: bool = field(default=False, metadata={"static": True})
    """Whether the text tokens of anchors are shared too."""
    keep_pool: bool = field(default=False, metadata={"static": True})
    """Whether the network returns the pool of every layer, for pictures that are drawn later."""


def mix(image: QKV, text: QKV, sharing: Sharing | None, bounded: bool = False) -> tuple[Streams, KeyValue | None]:
    """The attention of one block: joint, or consistent with one layer's `sharing` (its arrays without the first axis).

    `bounded` is that of `attention.attend`.

    Returns:
        The image and the text stream, and the pool if it is to be kept.
    """
    if sharing is None:
        return joint_attention(image, text, bounded=bounded), None
    pool = sharing.pool
    if pool is None:
        pool = anchor_pool(image, text, sharing.tokens, sharing.anchors, sharing.share_text)

    def consistent() -> Streams:
        return consistent_attention(
            image, text, sharing.tokens, pool, anchors=sharing.anchors, share_text=sharing.share_text, bounded=bounded
        )

    kept = pool if sharing.keep_pool else None
    if sharing.active is None:
        return consistent(), kept
    return jax.lax.cond(sharing.active, consistent, lambda: joint_attention(image, text, bounded=bounded)), kept


def random_tokens(
    key: Key[Array, ""], layers: int, length: int, count: int, candidates: Bool[Array, " L"] | None = None
) -> Tokens:
    """Shared tokens drawn anew for every layer, [layers, count] of `length`, without repetition.

    Args:
        key: decides them; the same for the whole set.
        layers, length, count: sizes; `count` is S.
        candidates: draw among these only; there must be at least `count` of them.
    """
    return _lowest(jax.random.uniform(key, (layers, length)), count, candidates)


def grid_tokens(
    layers: int, rows: int, columns: int, count: int, candidates: Bool[Array, " L"] | None = None
) -> Tokens:
    """The same evenly spread tokens in every layer: the first of an ordered dither.

    A half is a checkerboard, a quarter every second token of every second row (Bayer 1973).
    """
    ranks = bayer_ranks(rows, columns).ravel().astype(np.float32)
    return _lowest(jnp.broadcast_to(ranks / (ranks.max() + 1.0), (layers, rows * columns)), count, candidates)


def _lowest(scores: Float[Array, "layers L"], count: int, candidates: Bool[Array, " L"] | None) -> Tokens:
    """The tokens of the lowest scores, which lie in [0, 1), and the rest."""
    if candidates is not None:
        scores = jnp.where(candidates, scores, scores + 1.0)
    order = jnp.argsort(scores, axis=1).astype(jnp.int32)
    return Tokens(order[:, :count], order[:, count:])


def bayer_ranks(rows: int, columns: int) -> Int[np.ndarray, "rows columns"]:
    """The threshold matrix of ordered dithering: bits of `x ^ y` and `y`, interleaved from the lowest on top."""
    y, x = np.indices((rows, columns))
    rank = np.zeros((rows, columns), np.int64)
    for bit in range(max(rows, columns).bit_length()):
        rank = (rank << 2) | ((((x ^ y) >> bit) & 1) << 1) | ((y >> bit) & 1)
    return rank
