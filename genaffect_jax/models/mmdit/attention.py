"""Attention as pure functions: joint attention of SD3, attention to shared conditions, consistent attention of a set.

Every attention is split around its middle: projections first (`models.mmdit.projections`), then what is here, then the
output projection, so that what is shared between images can change without touching parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from genaffect_jax.kernels.attention import (
    choose_backend,
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


@overload
def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    return_lse: Literal[False] = False,
    max_free: bool = False,
) -> Array: ...
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
    attention; neither writes the scores to memory. With `max_free`, long sequences go to `kernels.hopper_attention` on
    a Hopper GPU. The rest runs in XLA's own operations.

    Args:
        query, key, value: split into heads; any lengths.
        mask: keys where it is False are unseen; at least one key of each batch entry must be seen.
        return_lse: also give the log-sum-exp of every query's scores, float32, for `merge`.
        max_free: whether the kernel without a running maximum may be used: all scores are known to lie within
            `models.mmdit.score_bound.LARGEST_SCORE`.
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

    All scores must lie within `models.mmdit.score_bound.LARGEST_SCORE`.

    Args:
        query: split into heads.
        sources: keys and values; those with fewer axes, [*first batch axes, K, N, H], serve all entries of the axes
            that they lack.
    """
    from genaffect_jax.kernels.hopper_attention import max_free_attention

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
    """The queries of all images of a group as one sequence: queries do not see each other, so nothing changes."""
    groups, expressions, length, *head = query.shape
    return query.reshape(groups, expressions * length, *head)


def attend_shared(
    query: Float[Array, "G E Q N H"], shared: KeyValue, mask: Bool[Array, "G K"] | None = None
) -> Float[Array, "G E Q N*H"]:
    """Attention of all E images of a group to one set of keys [G, K, N, H], without copies of the keys."""
    return attend(fold(query), shared.key, shared.value, mask).reshape(*query.shape[:3], -1)


def join(image: Float[Array, "*batch L N H"], text: Float[Array, "*batch T N H"]) -> Float[Array, "*batch L+T N H"]:
    """Image tokens, then text tokens.

    A concatenation, written as a choice between two padded arrays: XLA's concatenation of two products' results runs at
    a third of a GPU's memory rate, this is one elementwise pass (docs/notes/sampling_speed.md#the-denoiser-on-one-gpu).
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
    """Attention over the joined image and text sequences of each image, cut into the two streams again."""
    return cut(attend(*(join(*pair) for pair in zip(image, text, strict=True)), max_free=max_free), image)


def cut(mixed: Float[Array, "*batch L+T D"], image: QKV) -> tuple[Array, Array]:
    """The image and the text part of a joined sequence, the inverse of `join`."""
    length = image.query.shape[-3]
    return mixed[..., :length, :], mixed[..., length:, :]
