"""What the pictures of a set share in every layer, and which image tokens that is: consistent attention in a network.

The arithmetic is in `models.attention`; here are its inputs, one row for each layer, and the choice of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

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
    keep_pool: bool = field(default=False, metadata={"static": True})
    """Whether the network returns the pool of every layer, for pictures that are drawn later."""


def mix(image: QKV, text: QKV, sharing: Sharing | None, max_free: bool = False) -> tuple[Streams, KeyValue | None]:
    """The attention of one block: joint, or consistent with one layer's `sharing` (its arrays without the first axis).

    `max_free` is that of `attention.attend`.

    Returns:
        The image and the text stream, and the pool if it is to be kept.
    """
    if sharing is None:
        return joint_attention(image, text, max_free=max_free), None
    pool = sharing.pool
    if pool is None:
        pool = anchor_pool(image, sharing.tokens, sharing.anchors)

    def consistent() -> Streams:
        return consistent_attention(image, text, sharing.tokens, pool, anchors=sharing.anchors, max_free=max_free)

    kept = pool if sharing.keep_pool else None
    if sharing.active is None:
        return consistent(), kept
    return jax.lax.cond(sharing.active, consistent, lambda: joint_attention(image, text, max_free=max_free)), kept


def random_tokens(
    key: Key[Array, ""], layers: int, length: int, count: int, candidates: Bool[Array, " L"] | None = None
) -> Tokens:
    """Shared tokens drawn anew for every layer, [layers, count] of `length`, without repetition.

    Args:
        key: decides them; the same for the whole set.
        layers, length, count: sizes; `count` is S.
        candidates: draw among these only; there must be at least `count` of them.
    """
    scores = jax.random.uniform(key, (layers, length))
    if candidates is not None:  # scores lie in [0, 1), so that all candidates come first
        scores = jnp.where(candidates, scores, scores + 1.0)
    order = jnp.argsort(scores, axis=1).astype(jnp.int32)
    return Tokens(order[:, :count], order[:, count:])
