"""Consistent attention: the images of a set attend to tokens of its anchors, in every layer and step.

The method is that of Gen-AFFECT (arXiv 2508.09461). The first images of each group are its anchors. In every layer a
random choice of image tokens is shared, as in StoryDiffusion (Zhou et al. 2024, arXiv 2405.01434, section 3.1). Keys
and values of these tokens of all anchors form the pool, to which every image of the group attends beside its own
tokens. Pools that are kept, the anchor KV cache, serve images that are sampled later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from genaffect_jax.kernels.attention import has_max_free_attention
from genaffect_jax.models.mmdit.attention import (
    QKV,
    KeyValue,
    attend,
    attend_all,
    fold,
    join,
    joint_attention,
    split,
)

# Results of one block's attention, heads joined: the image stream and the text stream.
Mixed = tuple[Float[Array, "G E L N*H"], Float[Array, "G E T N*H"]]


class Tokens(NamedTuple):
    """Image tokens of one layer in two parts of 0..L-1, the same for all images of a set."""

    shared: Int[Array, " S"]
    """Tokens of the pool, none twice."""
    own: Int[Array, " L-S"]
    """All other tokens, none twice."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharing:
    """Consistent attention in one evaluation of the network; every array has a leading axis for the layers."""

    tokens: Tokens
    """Shared tokens [layers, S] and all others [layers, L-S]."""
    active: Bool[Array, " layers"] | None = None
    """Layers in which the set shares; None: all of them, without a branch in the program."""
    pool: KeyValue | None = None
    """Keys and values [layers, G, K, N, H] of anchors from an earlier call; None: the pool is made of the first
    `anchors` images."""
    anchors: int = field(default=0, metadata={"static": True})
    """Images, the first of each group, whose tokens form the pool; 0 with a pool from an earlier call."""
    keep_pool: bool = field(default=False, metadata={"static": True})
    """Whether the network returns the pool of every layer, for images that are sampled later."""
    copied: bool = field(default=False, metadata={"static": True})
    """For training: every image is an anchor and gets a copy of what it attends to (`copied_attention`)."""


def set_attention(
    image: QKV, text: QKV, sharing: Sharing | None, max_free: bool = False
) -> tuple[Mixed, KeyValue | None]:
    """The attention of one block: consistent attention with `sharing`, joint attention of each image without.

    Args:
        image, text: the two streams, [G, E, L or T, N, H].
        sharing: that of this layer, its arrays without the leading axis; None: no image sees another.
        max_free: see `attention.attend`.

    Returns:
        The image and the text stream, and the pool if it is to be kept.
    """
    if sharing is None:
        return joint_attention(image, text, max_free=max_free), None
    pool = sharing.pool
    if pool is None and not sharing.copied:
        pool = anchor_pool(image, sharing.tokens, sharing.anchors)

    def consistent() -> Mixed:
        if pool is None:
            return copied_attention(image, text, sharing.tokens)
        return consistent_attention(image, text, sharing.tokens, pool, anchors=sharing.anchors, max_free=max_free)

    def joint() -> Mixed:
        return joint_attention(image, text, max_free=max_free)

    mixed = consistent() if sharing.active is None else jax.lax.cond(sharing.active, consistent, joint)
    return mixed, pool if sharing.keep_pool else None


def anchor_pool(image: QKV, tokens: Tokens, anchors: int) -> KeyValue:
    """Keys and values [G, A*S, N, H] of the shared tokens of the first `anchors` images of each group."""
    return KeyValue(*(fold(jnp.take(x[:, :anchors], tokens.shared, axis=2)) for x in (image.key, image.value)))


def consistent_attention(
    image: QKV,
    text: QKV,
    tokens: Tokens,
    pool: KeyValue,
    *,
    anchors: int,
    max_free: bool = False,
) -> Mixed:
    """Joint attention in which the images of a group also attend to the shared tokens I of its anchors.

    The queries of each image attend to its own text tokens, all of its own image tokens, and the pool; its own tokens
    count once. An anchor, whose shared tokens are in the pool, therefore attends to `text + image[not I]` and the pool,
    any other image to `text + image` and the pool. The attention over own keys runs per image. The attention over the
    pool runs per group, with the queries of all its images folded into one sequence. The two are merged by their
    log-sum-exp. No mask is needed, and the pool is neither copied nor repeated.

    Args:
        image, text: the two streams, [G, E, L or T, N, H].
        tokens: which image tokens are shared.
        pool: what `anchor_pool` made of the same layer and tokens, of these images or in an earlier call.
        anchors: the first so many images contribute to `pool`; 0 if it is the pool of other images.
        max_free: see `attention.attend`. The max-free kernel reads own keys and pool in one pass, so that nothing is
            merged.

    Returns:
        The image and the text stream.
    """
    query = join(image.query, text.query)
    pairs = (image.key, text.key), (image.value, text.value)
    # Each part of the group with its own keys and values.
    parts: list[tuple[Array, KeyValue]] = []
    if anchors:
        # The pool holds the shared tokens of an anchor, so its own part holds the others.
        own = (join(jnp.take(x[:, :anchors], tokens.own, axis=2), y[:, :anchors]) for x, y in pairs)
        parts.append((query[:, :anchors], KeyValue(*own)))
    if anchors < query.shape[1]:
        parts.append((query[:, anchors:], KeyValue(*(join(x[:, anchors:], y[:, anchors:]) for x, y in pairs))))
    if max_free and has_max_free_attention(query.dtype, query.shape[-1]):
        return split(jnp.concatenate([attend_all(q, [own, pool]) for q, own in parts], axis=1), image)
    outs, sums = zip(*(attend(q, *own, return_lse=True) for q, own in parts), strict=True)
    own_part = (jnp.concatenate(outs, axis=1), jnp.concatenate(sums, axis=1))
    out, lse = attend(fold(query), pool.key, pool.value, return_lse=True)
    pool_part = (out.reshape(own_part[0].shape), lse.reshape(own_part[1].shape))
    return split(merge(own_part, pool_part), image)


def copied_attention(image: QKV, text: QKV, tokens: Tokens) -> Mixed:
    """`consistent_attention` of a group of anchors, in which each image has a copy of the others' shared tokens.

    The same function with as many scores in one attention. It needs E copies of the pool, little for the small sets of
    training, and no merge: on GPUs the log-sum-exp, which a merge needs, has no gradient.

    Args:
        image, text: the two streams, [G, E, L or T, N, H].
        tokens: which image tokens are shared.
    """

    def seen(own: Float[Array, "G E L N H"], words: Float[Array, "G E T N H"]) -> Float[Array, "G E K N H"]:
        shared = jnp.take(own, tokens.shared, axis=2)
        others = (jnp.roll(shared, shift, axis=1) for shift in range(1, own.shape[1]))
        return jnp.concatenate([own, words, *others], axis=2)

    mixed = attend(join(image.query, text.query), seen(image.key, text.key), seen(image.value, text.value))
    return split(mixed, image)


def merge(
    first: tuple[Float[Array, "*batch Q N*H"], Float32[Array, "*batch Q N"]],
    second: tuple[Float[Array, "*batch Q N*H"], Float32[Array, "*batch Q N"]],
) -> Float[Array, "*batch Q N*H"]:
    """Merges two attentions of the same queries to different keys into one attention to all of the keys.

    The weight of each part is its share of the softmax sums, `exp(lse)`: the rule by which flash attention merges its
    blocks (Dao 2023, arXiv 2307.08691, section 3.1). Weights and sum are float32.

    Args:
        first, second: result, heads joined, and log-sum-exp of the scores of each attention.
    """
    (a, lse_a), (b, lse_b) = first, second
    weight = jax.nn.sigmoid(lse_b - lse_a)[..., None]  # exp(lse_b) / (exp(lse_a) + exp(lse_b))
    a_heads, b_heads = (x.reshape(*lse_a.shape, -1).astype(jnp.float32) for x in (a, b))
    return (a_heads + weight * (b_heads - a_heads)).reshape(a.shape).astype(a.dtype)


def random_tokens(
    key: Key[Array, ""], layers: int, length: int, count: int, candidates: Bool[Array, " L"] | None = None
) -> Tokens:
    """A random choice of `count` out of `length` image tokens for every layer, [layers, count].

    Args:
        key: decides the choice; the same for the whole set.
        layers, length, count: sizes; `count` is S.
        candidates: True for tokens that may be chosen, at least `count` of them; None: all.
    """
    scores = jax.random.uniform(key, (layers, length))
    if candidates is not None:  # scores lie in [0, 1), so that all candidates come first
        scores = jnp.where(candidates, scores, scores + 1.0)
    order = jnp.argsort(scores, axis=1).astype(jnp.int32)
    return Tokens(order[:, :count], order[:, count:])
