"""Consistent attention: the images of a set attend to shared tokens of its anchors, in every layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from genaffect_jax.kernels.attention import has_max_free_attention
from genaffect_jax.models.mmdit.attention import (
    QKV,
    KeyValue,
    attend,
    attend_all,
    cut,
    fold,
    join,
    joint_attention,
    merge,
)


class Tokens(NamedTuple):
    """Which image tokens a set shares in one layer: two parts of 0..L-1, each without repetition."""

    shared: Int[Array, " S"]
    """The tokens of the pool."""
    own: Int[Array, " L-S"]
    """All others."""


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
    `anchors` images."""
    anchors: int = field(default=0, metadata={"static": True})
    """Images, the first of each group, whose tokens everybody sees; 0 with an earlier pool."""
    keep_pool: bool = field(default=False, metadata={"static": True})
    """Whether the network returns the pool of every layer, for images that are drawn later."""


def set_attention(
    image: QKV, text: QKV, sharing: Sharing | None, max_free: bool = False
) -> tuple[Streams, KeyValue | None]:
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


def anchor_pool(image: QKV, tokens: Tokens, anchors: int) -> KeyValue:
    """What the first `anchors` images of a group show the whole group: keys and values [G, A*S, N, H]."""
    return KeyValue(*(fold(jnp.take(x[:, :anchors], tokens.shared, axis=2)) for x in (image.key, image.value)))


def consistent_attention(
    image: QKV,
    text: QKV,
    tokens: Tokens,
    pool: KeyValue,
    *,
    anchors: int,
    max_free: bool = False,
) -> tuple[Float[Array, "G E L N*H"], Float[Array, "G E T N*H"]]:
    """Joint attention in which the images of a group also see the tokens I of its anchors.

    Image and text queries of image i attend to its own text, all of its own image tokens, and the pool, in which its
    own tokens count once. For an anchor that is `text + image[not I]` and the pool, which has its own share; for any
    other image `text + image` and the pool. Each image has one attention over its own keys, all queries of the
    group, folded into one sequence, have one over the pool, and the two are merged by their log-sum-exp: no mask, and
    neither copies nor repetitions of the pool.

    Args:
        image, text: the two streams, [G, E, L or T, N, H].
        tokens: which image tokens are shared, the same for the whole set.
        pool: what `anchor_pool` made of the same layer and tokens, of these images or of an earlier pass.
        anchors: the first so many images contribute to `pool`; 0 if the pool is that of other images.
        max_free: see `attend`. Where a kernel reads own keys and pool in one pass, nothing is merged.

    Returns:
        The image and the text stream.
    """
    query = join(image.query, text.query)
    pairs = (image.key, text.key), (image.value, text.value)
    # Each part of the group with its own keys and values.
    parts: list[tuple[Array, KeyValue]] = []
    if anchors:
        # The own part of an anchor holds what of it is not in the pool.
        own = (join(jnp.take(x[:, :anchors], tokens.own, axis=2), y[:, :anchors]) for x, y in pairs)
        parts.append((query[:, :anchors], KeyValue(*own)))
    if anchors < query.shape[1]:
        parts.append((query[:, anchors:], KeyValue(*(join(x[:, anchors:], y[:, anchors:]) for x, y in pairs))))
    if max_free and has_max_free_attention(query.dtype, query.shape[-1]):
        return cut(jnp.concatenate([attend_all(q, [own, pool]) for q, own in parts], axis=1), image)
    outs, sums = zip(*(attend(q, *own, return_lse=True) for q, own in parts), strict=True)
    own_part = (jnp.concatenate(outs, axis=1), jnp.concatenate(sums, axis=1))
    out, lse = attend(fold(query), pool.key, pool.value, return_lse=True)
    pool_part = (out.reshape(own_part[0].shape), lse.reshape(own_part[1].shape))
    return cut(merge(own_part, pool_part), image)


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
