"""Attention: the joint text and image attention of SD3, and the decoupled branches beside it.

Every attention is split around its middle: projections first, then `attend`, then the output projection, so
that what is shared between pictures can change without touching parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros
from jaxtyping import Array, Bool, Float

from genaffect_jax.models.layers import Linear, RMSNorm, joined_product, xavier_uniform

# Initial scale of a branch's normalised keys. With 1 the first attention to a reference is nearly even over its places.
KEY_SCALE = 3.0


class QKV(NamedTuple):
    """Queries, keys and values of one stream, split into heads."""

    query: Float[Array, "*batch S N H"]
    key: Float[Array, "*batch S N H"]
    value: Float[Array, "*batch S N H"]


class KeyValue(NamedTuple):
    """Keys and values of condition tokens, split into heads."""

    key: Float[Array, "*batch K N H"]
    value: Float[Array, "*batch K N H"]


def attend(
    query: Float[Array, "*batch Q N H"],
    key: Float[Array, "*batch K N H"],
    value: Float[Array, "*batch K N H"],
    mask: Bool[Array, "*batch K"] | None = None,
) -> Float[Array, "*batch Q N*H"]:
    """Scaled dot-product attention, softmax in float32; heads are joined again.

    Half precision without a mask runs on an NVIDIA GPU in cuDNN's flash attention, which never writes the scores to
    memory; everything else in XLA's own operations.

    Args:
        query, key, value: split into heads.
        mask: keys where it is False are unseen; at least one key of each batch entry must be seen.
    """
    *batch, length, heads, size = query.shape
    q, k, v = (x.reshape(-1, *x.shape[len(batch) :]) for x in (query, key, value))
    if mask is None and jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16):
        out = _flash_attention(q, k, v)
    else:
        # The mask gets an axis for heads and one for queries.
        wide = None if mask is None else mask.reshape(-1, 1, 1, mask.shape[-1])
        out = jax.nn.dot_product_attention(q, k, v, mask=wide)
    return out.reshape(*batch, length, heads * size)


@jax.custom_vjp
def _flash_attention(
    query: Float[Array, "B Q N H"], key: Float[Array, "B K N H"], value: Float[Array, "B K N H"]
) -> Float[Array, "B Q N H"]:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _flash_attention_forward(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
    return jax.vjp(_even_flash_attention, query, key, value)


def _even_flash_attention(query: Array, key: Array, value: Array) -> Array:
    """The same with lengths made even: the backward pass refuses odd ones, forward alone is faster without padding."""
    length, seen = query.shape[1], key.shape[1]
    even = [jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (query, key, value)]
    lengths = jnp.full(key.shape[0], seen, jnp.int32) if seen % 2 else None
    out = jax.nn.dot_product_attention(*even, key_value_seq_lengths=lengths, implementation="cudnn")
    return out[:, :length]


_flash_attention.defvjp(_flash_attention_forward, lambda backward, gradient: backward(gradient))


def attend_shared(
    query: Float[Array, "G E Q N H"], shared: KeyValue, mask: Bool[Array, "G K"] | None = None
) -> Float[Array, "G E Q N*H"]:
    """Attention of all E pictures of a group to one set of keys [G, K, N, H], without copies of the keys.

    The pictures' queries are folded into one long sequence, which changes nothing: queries do not see each other.
    """
    groups, expressions, length, heads, size = query.shape
    folded = query.reshape(groups, expressions * length, heads, size)
    return attend(folded, shared.key, shared.value, mask).reshape(groups, expressions, length, heads * size)


def _join(image: Float[Array, "*batch L N H"], text: Float[Array, "*batch T N H"]) -> Float[Array, "*batch L+T N H"]:
    # A concatenation, written as a choice between two padded arrays: XLA's concatenation of two products' results runs
    # at a third of a GPU's memory rate, this is one elementwise pass (docs/performance.md).
    length, extra, axis = image.shape[-3], text.shape[-3], image.ndim - 3

    def padded(x: Array, before: int, after: int) -> Array:
        edges = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)

    place = jax.lax.broadcasted_iota(jnp.int32, (length + extra, 1, 1), 0)
    return jnp.where(place < length, padded(image, 0, extra), padded(text, length, 0))


def joint_attention(image: QKV, text: QKV) -> tuple[Float[Array, "*batch L N*H"], Float[Array, "*batch T N*H"]]:
    """Attention over the joined image and text sequences of each picture, cut into the two streams again."""
    mixed = attend(*(_join(*pair) for pair in zip(image, text, strict=True)))
    length = image.query.shape[-3]
    return mixed[..., :length, :], mixed[..., length:, :]


class QKVProjection(nnx.Module):
    """Queries, keys and values of one stream, with RMS norm over each head's queries and keys if asked for."""

    def __init__(
        self, width: int, heads: int, head_dim: int, *, qk_norm: bool, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        self.heads, self.head_dim = heads, head_dim

        def project() -> Linear:
            return Linear(width, heads * head_dim, axes=("embed", "heads"), rngs=rngs, dtype=dtype)

        self.query, self.key, self.value = project(), project(), project()
        self.query_norm = RMSNorm(head_dim, dtype=dtype) if qk_norm else None
        self.key_norm = RMSNorm(head_dim, dtype=dtype) if qk_norm else None

    def __call__(self, x: Float[Array, "*batch S D"]) -> QKV:
        # One product for all three reads `x` once.
        query, key, value = (
            y.reshape(*x.shape[:-1], self.heads, self.head_dim)
            for y in joined_product(x, (self.query, self.key, self.value))
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return QKV(query, key, value)


class SelfAttention(nnx.Module):
    """Multi-head attention of one stream to itself."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        *,
        qk_norm: bool,
        out_init: Initializer = xavier_uniform,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        self.qkv = QKVProjection(width, heads, head_dim, qk_norm=qk_norm, rngs=rngs, dtype=dtype)
        self.out = Linear(
            heads * head_dim, width, axes=("heads", "embed"), kernel_init=out_init, rngs=rngs, dtype=dtype
        )

    def __call__(
        self, x: Float[Array, "*batch S D"], mask: Bool[Array, "*batch S"] | None = None
    ) -> Float[Array, "*batch S D"]:
        qkv = self.qkv(x)
        return self.out(attend(qkv.query, qkv.key, qkv.value, mask))


class ConditionBranch(nnx.Module):
    """Key and value projections of one decoupled cross-attention branch (IP-Adapter, Ye et al. 2023, arXiv 2308.06721).

    The image queries of the joint attention look at these keys. Values start at zero, so that a new branch adds
    exactly nothing. Keys start as a copy of the query projection `queries`: image tokens then look at the condition
    tokens most like themselves, which for a reference picture are those at the same place, before anything is
    learned.
    """

    def __init__(self, queries: QKVProjection, width: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.heads, self.head_dim = queries.heads, queries.head_dim
        features = self.heads * self.head_dim
        axes = ("embed", "heads")

        def like_queries(key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
            return jnp.array(queries.query.kernel[...], dtype, copy=True)

        self.key = Linear(width, features, axes=axes, use_bias=False, kernel_init=like_queries, rngs=rngs, dtype=dtype)
        self.value = Linear(width, features, axes=axes, use_bias=False, kernel_init=zeros, rngs=rngs, dtype=dtype)
        self.key_norm = (
            None if queries.key_norm is None else RMSNorm(self.head_dim, initial_scale=KEY_SCALE, dtype=dtype)
        )

    def __call__(self, tokens: Float[Array, "*batch K D"]) -> KeyValue:
        shape = (*tokens.shape[:-1], self.heads, self.head_dim)
        key, value = self.key(tokens).reshape(shape), self.value(tokens).reshape(shape)
        return KeyValue(key if self.key_norm is None else self.key_norm(key), value)
