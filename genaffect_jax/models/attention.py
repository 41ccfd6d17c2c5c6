"""Attention as pure functions: joint attention of SD3, attention to shared conditions, consistent attention of a set.

Every attention is split around its middle: projections first (`models.projections`), then what is here, then the output
projection, so that what is shared between pictures can change without touching parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from genaffect_jax.models.attention_backends import (
    choose_backend,
    has_max_free_attention,
    prefers_max_free_attention,
    run_backend,
)


class QKV(NamedTuple):
    """Queries, keys and values of one stream, split into heads."""

    query: Float[Array, "*batch S N H"]
    key: Float[Array, "*batch S N H"]
    value: Float[Array, "*batch S N H"]


class KeyValue(NamedTuple):
    """Keys and values, split into heads."""

    key: Float[Array, "*batch K N H"]
    value: Float[Array, "*batch K N H"]


class Tokens(NamedTuple):
    """Which image tokens a set shares in one layer: two parts of 0..L-1, each without repetition."""

    shared: Int[Array, " S"]
    """The tokens of the pool."""
    own: Int[Array, " L-S"]
    """All others."""


@overload
def attend(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, return_lse: Literal[False] = False,
    max_free: bool = False,
) -> Array: ...  # fmt: skip
@overload
def attend(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, return_lse: Literal[True]
) -> tuple[Array, Array]: ...
def attend(
    query: Float[Array, "*batch Q N H"],
    key: Float[Array, "*batch K N H"],
    value: Float[Array, "*batch K N H"],
    mask: Bool[Array, "*batch K"] | None = None,
    *,
    return_lse: bool = False,
    max_free: bool = False,
) -> Float[Array, "*batch Q N*H"] | tuple[Float[Array, "*batch Q N*H"], Float32[Array, "*batch Q N"]]:
    """Scaled dot-product attention, softmax in float32; heads are joined again.

    Half precision without a mask runs on an NVIDIA GPU in cuDNN's flash attention, everything on a TPU in splash
    attention; neither writes the scores to memory. With `max_free`, long sequences go to `models.hopper_attention` on a
    Hopper GPU. The rest runs in XLA's own operations.

    Args:
        query, key, value: split into heads; any lengths.
        mask: keys where it is False are unseen; at least one key of each batch entry must be seen.
        return_lse: also give the log-sum-exp of every query's scores, float32, for `merge`.
        max_free: whether the kernel without a running maximum may be used: all scores are known to lie within
            `bounded_scores.LARGEST_SCORE`.
    """
    *batch, length, heads, size = query.shape
    plain = mask is None and not return_lse
    if max_free and plain and prefers_max_free_attention(length, query.dtype, size):
        return attend_all(query, [KeyValue(key, value)])
    q, k, v = (x.reshape(-1, *x.shape[len(batch) :]) for x in (query, key, value))
    flat = None if mask is None else mask.reshape(-1, mask.shape[-1])
    out, lse = run_backend(choose_backend(query.dtype, mask is not None), q, k, v, flat, return_lse)
    joined = out.reshape(*batch, length, heads * size)
    return joined if lse is None else (joined, lse.reshape(*batch, length, heads))


def attend_all(query: Float[Array, "*batch Q N H"], sources: Sequence[KeyValue]) -> Float[Array, "*batch Q N*H"]:
    """Max-free attention to the keys of all sources as if they were one sequence, without joining them.

    All scores must lie within `bounded_scores.LARGEST_SCORE`.

    Args:
        query: split into heads.
        sources: keys and values; those with fewer axes, [*first batch axes, K, N, H], serve all entries of the axes
            that they lack.
    """
    from genaffect_jax.models.hopper_attention import max_free_attention

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[-3:])

    out = max_free_attention(flat(query), [(flat(source.key), flat(source.value)) for source in sources])
    return out.reshape(*query.shape[:-2], -1)


def merge(
    first: tuple[Float[Array, "*batch Q N*H"], Float32[Array, "*batch Q N"]],
    second: tuple[Float[Array, "*batch Q N*H"], Float32[Array, "*batch Q N"]],
) -> Float[Array, "*batch Q N*H"]:
    """Two attentions of the same queries to different keys as one attention to all of them.

    Each part weighs as much as its softmax sum, `exp(lse)`, in the whole: the rule by which flash attention puts its
    blocks together (Dao 2023, arXiv 2307.08691, section 3.1). Weights and sum are float32.
    """
    (a, lse_a), (b, lse_b) = first, second
    share = jax.nn.sigmoid(lse_b - lse_a)[..., None]  # exp(lse_b) / (exp(lse_a) + exp(lse_b))
    a_heads, b_heads = (x.reshape(*lse_a.shape, -1).astype(jnp.float32) for x in (a, b))
    return (a_heads + share * (b_heads - a_heads)).reshape(a.shape).astype(a.dtype)


def fold(query: Float[Array, "G E Q N H"]) -> Float[Array, "G E*Q N H"]:
    """The queries of all pictures of a group as one sequence: queries do not see each other, so nothing changes."""
    groups, expressions, length, *head = query.shape
    return query.reshape(groups, expressions * length, *head)


def attend_shared(
    query: Float[Array, "G E Q N H"], shared: KeyValue, mask: Bool[Array, "G K"] | None = None
) -> Float[Array, "G E Q N*H"]:
    """Attention of all E pictures of a group to one set of keys [G, K, N, H], without copies of the keys."""
    return attend(fold(query), shared.key, shared.value, mask).reshape(*query.shape[:3], -1)


def join(image: Float[Array, "*batch L N H"], text: Float[Array, "*batch T N H"]) -> Float[Array, "*batch L+T N H"]:
    """Image tokens, then text tokens.

    A concatenation, written as a choice between two padded arrays: XLA's concatenation of two products' results runs at
    a third of a GPU's memory rate, this is one elementwise pass (docs/performance.md).
    """
    length, extra, axis = image.shape[-3], text.shape[-3], image.ndim - 3

    def padded(x: Array, before: int, after: int) -> Array:
        edges = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)

    place = jax.lax.broadcasted_iota(jnp.int32, (length + extra, 1, 1), 0)
    return jnp.where(place < length, padded(image, 0, extra), padded(text, length, 0))


def joint_attention(
    image: QKV, text: QKV, *, max_free: bool = False
) -> tuple[Float[Array, "*batch L N*H"], Float[Array, "*batch T N*H"]]:
    """Attention over the joined image and text sequences of each picture, cut into the two streams again."""
    return _cut(attend(*(join(*pair) for pair in zip(image, text, strict=True)), max_free=max_free), image)


def anchor_pool(image: QKV, tokens: Tokens, anchors: int) -> KeyValue:
    """What the first `anchors` pictures of a group show the whole group: keys and values [G, A*S, N, H]."""
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
    """Joint attention in which the pictures of a group also see the tokens I of its anchors.

    Image and text queries of picture i attend to its own text, all of its own image tokens, and the pool, in which its
    own tokens count once. For an anchor that is `text + image[not I]` and the pool, which has its own share; for any
    other picture `text + image` and the pool. Each picture has one attention over its own keys, all queries of the
    group, folded into one sequence, have one over the pool, and the two are merged by their log-sum-exp: no mask, and
    neither copies nor repetitions of the pool.

    Args:
        image, text: the two streams, [G, E, L or T, N, H].
        tokens: which image tokens are shared, the same for the whole set.
        pool: what `anchor_pool` made of the same layer and tokens, of these pictures or of an earlier pass.
        anchors: the first so many pictures contribute to `pool`; 0 if the pool is that of other pictures.
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
        return _cut(jnp.concatenate([attend_all(q, [own, pool]) for q, own in parts], axis=1), image)
    outs, sums = zip(*(attend(q, *own, return_lse=True) for q, own in parts), strict=True)
    own_part = (jnp.concatenate(outs, axis=1), jnp.concatenate(sums, axis=1))
    out, lse = attend(fold(query), pool.key, pool.value, return_lse=True)
    pool_part = (out.reshape(own_part[0].shape), lse.reshape(own_part[1].shape))
    return _cut(merge(own_part, pool_part), image)


def _cut(mixed: Float[Array, "*batch L+T D"], image: QKV) -> tuple[Array, Array]:
    length = image.query.shape[-3]
    return mixed[..., :length, :], mixed[..., length:, :]
