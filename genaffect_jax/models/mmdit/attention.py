"""Attention as pure functions: scaled dot-product, joint (SD3), and decoupled cross-attention (Gen-AFFECT).

Projections come before (`models.mmdit.projections`) and the output projection comes after: these functions hold no
parameters. Consistent attention among the images of a set is in `models.mmdit.consistent_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from genaffect_jax.kernels.attention import choose_backend, prefers_max_free_attention, run_backend
from genaffect_jax.kernels.decoupled_attention import Inputs, decoupled_attention, has_decoupled_attention


class QKV(NamedTuple):
    """Queries, keys and values of one stream, split into heads."""

    query: Float[Array, "*batch S N H"]
    key: Float[Array, "*batch S N H"]
    value: Float[Array, "*batch S N H"]


class KeyValue(NamedTuple):
    """Keys and values, split into heads."""

    key: Float[Array, "*batch K N H"]
    value: Float[Array, "*batch K N H"]


class BeforeNorm(NamedTuple):
    """Queries, keys and values of one stream before QK norm, heads side by side, and the learned scales of the norm."""

    query: Float[Array, "*batch S N*H"]
    key_value: Float[Array, "*batch S 2 N*H"]
    query_scale: Float[Array, " H"]
    key_scale: Float[Array, " H"]


class BranchInputs(NamedTuple):
    """What the condition branches of one block see, and their weights at run time.

    For a whole network every array has a leading axis for the layers.
    """

    identity: KeyValue
    """Identity tokens [G, K, N, H], shared by the images of a group."""
    expression: KeyValue | None
    """Expression tokens of each image, [G, E, K, N, H]; None where they are among the text tokens."""
    identity_scale: Float[Array, ""]
    """Weight of the identity branch, float32."""
    expression_scale: Float[Array, ""]
    """Weight of the expression branch, float32."""


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
    """Scaled dot-product attention with softmax in float32; the heads of the result are joined.

    On an NVIDIA GPU, half precision without a mask runs in cuDNN's flash attention; on a TPU, everything runs in splash
    attention. Neither writes the scores to memory. With `max_free`, long sequences run in `kernels.hopper_attention` on
    a Hopper GPU. Everything else runs in XLA's own operations.

    Args:
        query, key, value: split into heads; any lengths.
        mask: False hides a key; every batch entry must see at least one key.
        return_lse: also return the log-sum-exp of every query's scores in float32, for
            `models.mmdit.consistent_attention.merge`.
        max_free: whether the kernel without a running maximum may run. It is exact only if all scores lie within
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
    """Max-free attention to the keys of all sources as if they were one sequence, without concatenating them.

    All scores must lie within `models.mmdit.score_bound.LARGEST_SCORE`.

    Args:
        query: split into heads.
        sources: keys and values. A source with fewer axes, [*first batch axes, K, N, H], serves all entries of the axes
            that it lacks.
    """
    # Imported here: the module brings Pallas's GPU backend with it.
    from genaffect_jax.kernels.hopper_attention import max_free_attention

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[-3:])

    out = max_free_attention(flat(query), [(flat(source.key), flat(source.value)) for source in sources])
    return out.reshape(*query.shape[:-2], -1)


def fold(query: Float[Array, "G E Q N H"]) -> Float[Array, "G E*Q N H"]:
    """The queries of all images of a group as one sequence. Queries do not see each other, so nothing else changes."""
    groups, expressions, length, *head = query.shape
    return query.reshape(groups, expressions * length, *head)


def attend_shared(
    query: Float[Array, "G E Q N H"], shared: KeyValue, mask: Bool[Array, "G K"] | None = None
) -> Float[Array, "G E Q N*H"]:
    """Attention of all E images of a group to the same keys [G, K, N, H], without copying the keys."""
    return attend(fold(query), shared.key, shared.value, mask).reshape(*query.shape[:3], -1)


def join(image: Float[Array, "*batch L N H"], text: Float[Array, "*batch T N H"]) -> Float[Array, "*batch L+T N H"]:
    """Concatenates image and text tokens, image first.

    The concatenation is written as a choice between two padded arrays. XLA's concatenation of the results of two
    products runs at a third of a GPU's memory rate; the choice is one elementwise pass
    (docs/notes/sampling_speed.md#the-denoiser-on-one-gpu).
    """
    length, extra, axis = image.shape[-3], text.shape[-3], image.ndim - 3

    def padded(x: Array, before: int, after: int) -> Array:
        edges = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)

    place = jax.lax.broadcasted_iota(jnp.int32, (length + extra, 1, 1), 0)
    return jnp.where(place < length, padded(image, 0, extra), padded(text, length, 0))


def split(mixed: Float[Array, "*batch L+T D"], image: QKV) -> tuple[Array, Array]:
    """The image and the text part of a joined sequence: the inverse of `join`."""
    length = image.query.shape[-3]
    return mixed[..., :length, :], mixed[..., length:, :]


def joint_attention(
    image: QKV, text: QKV, *, max_free: bool = False
) -> tuple[Float[Array, "*batch L N*H"], Float[Array, "*batch T N*H"]]:
    """Attention over the joined image and text tokens of each image (Esser et al. 2024, arXiv 2403.03206, figure 2)."""
    return split(attend(*(join(*pair) for pair in zip(image, text, strict=True)), max_free=max_free), image)


def decoupled_cross_attention(
    mixed: Float[Array, "G E L N*H"],
    query: Float[Array, "G E L N H"],
    branches: BranchInputs,
    identity_mask: Bool[Array, "G K"] | None = None,
) -> Float[Array, "G E L N*H"]:
    """Adds what the image queries find among identity and expression tokens to the result of the joint attention.

    Decoupled cross-attention (IP-Adapter, Ye et al. 2023, arXiv 2308.06721, section 3.2.2) with the two branches of
    Gen-AFFECT (arXiv 2508.09461): the same queries attend to each kind of token in a softmax of its own,

        Z = Attn(Q, K, V) + s_id Attn(Q, K_id, V_id) + s_ex Attn(Q, K_ex, V_ex).

    Args:
        mixed: Attn(Q, K, V), the image part of joint or consistent attention.
        query: Q, the image queries of the same attention.
        branches: keys and values of identity and expression tokens, and the scales s_id and s_ex. Without expression
            tokens the last term is left out.
        identity_mask: False where an identity token is padding; None: no token is.

    Returns:
        Z, in the type of `mixed`.
    """
    identity = attend_shared(query, branches.identity, identity_mask)
    mixed = mixed + branches.identity_scale.astype(mixed.dtype) * identity
    if branches.expression is None:
        return mixed
    expression = attend(query, branches.expression.key, branches.expression.value)
    return mixed + branches.expression_scale.astype(mixed.dtype) * expression


def concatenated_cross_attention(
    mixed: Float[Array, "G E L N*H"],
    query: Float[Array, "G E L N H"],
    branches: BranchInputs,
    identity_mask: Bool[Array, "G K"] | None = None,
) -> Float[Array, "G E L N*H"]:
    """As `decoupled_cross_attention`, with identity and expression tokens in one softmax.

        Z = Attn(Q, K, V) + Attn(Q, [K_id, K_ex], [s_id V_id, s_ex V_ex])

    What decoupling is compared with. Each image gets a copy of its group's identity tokens, as a merge of two
    attentions has no gradient in every backend (`kernels.attention.run_backend`).

    Raises:
        ValueError: there are no expression tokens.
    """
    if branches.expression is None:
        raise ValueError("concatenated_cross_attention: there are no expression tokens")
    images = query.shape[:2]

    def each(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (*images, *x.shape[1:]))

    values = branches.identity_scale * branches.identity.value, branches.expression_scale * branches.expression.value
    key = jnp.concatenate([each(branches.identity.key), branches.expression.key], axis=2)
    value = jnp.concatenate([each(values[0]), values[1]], axis=2).astype(key.dtype)
    mask = None
    if identity_mask is not None:
        mask = jnp.concatenate([each(identity_mask), jnp.ones((*images, branches.expression.key.shape[2]), bool)], 2)
    return mixed + attend(query, key, value, mask)


def runs_fused(tokens: Float[Array, "G E L D"], text: QKV, branches: BranchInputs) -> bool:
    """Whether `fused_attention` runs, and is then faster: short sequences on Hopper GPUs, in half precision."""
    if branches.expression is None:
        return False
    size = text.query.shape[-1]
    own = text.query.shape[-3] + branches.expression.key.shape[-3]
    identity = branches.identity.key.shape[-3]
    return has_decoupled_attention(tokens.dtype, size, tokens.shape[-2], own, identity)


def fused_attention(
    image: BeforeNorm, text: QKV, branches: BranchInputs
) -> tuple[Float[Array, "G E L N*H"], Float[Array, "G E T N*H"]]:
    """QK norm of the image stream, `joint_attention` and `decoupled_cross_attention` in one kernel.

    Args:
        image: the image stream before QK norm.
        text: the text stream, normalised.
        branches: keys and values of identity tokens, none of them padding, and expression tokens, and the scales.

    Raises:
        ValueError: there are no expression tokens.
    """
    if branches.expression is None:
        raise ValueError("fused_attention: there are no expression tokens")

    def joined(x: Float[Array, "*batch S N H"]) -> Float[Array, "*batch S N*H"]:
        return x.reshape(*x.shape[:-2], -1)

    def scaled(values: Array, scale: Float[Array, ""]) -> Array:
        return joined(values) * scale.astype(values.dtype)

    expression_value = scaled(branches.expression.value, branches.expression_scale)
    return decoupled_attention(
        Inputs(
            *image,
            joined(text.query),
            jnp.concatenate([joined(text.key), joined(branches.expression.key)], axis=-2),
            jnp.concatenate([joined(text.value), expression_value], axis=-2),
            joined(branches.identity.key),
            scaled(branches.identity.value, branches.identity_scale),
        )
    )
