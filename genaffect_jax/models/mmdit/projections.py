"""Projections before and after attention: queries, keys and values of a stream, and those of the condition branches."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros
from jaxtyping import Array, Bool, Float

from genaffect_jax.kernels.fused_bias import bias_and_qk_norm
from genaffect_jax.models.layers import Bias, Linear, RMSNorm, joined_product_and_bias, with_bias, xavier_uniform
from genaffect_jax.models.mmdit.attention import QKV, BeforeNorm, KeyValue, attend

# Initial scale of a branch's normalised keys. With 1 the first attention to a reference would be nearly uniform.
KEY_SCALE = 3.0


class QKVProjection(nnx.Module):
    """Queries, keys and values of one stream; with `qk_norm`, each head's queries and keys are RMS-normalised."""

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
        product, bias = joined_product_and_bias(x, (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            return QKV(*bias_and_qk_norm(product, bias, self.query_norm.scale[...], self.key_norm.scale[...]))
        joined = with_bias(product, bias)
        return QKV(*(y.reshape(*x.shape[:-1], self.heads, self.head_dim) for y in jnp.split(joined, 3, axis=-1)))

    def before_norm(self, x: Float[Array, "*batch S D"]) -> BeforeNorm:
        """The three products with their biases, for attention that computes QK norm itself (`fused_attention`).

        Raises:
            ValueError: there is no QK norm.
        """
        if self.query_norm is None or self.key_norm is None:
            raise ValueError("before_norm: the projection has no QK norm")
        key_value = with_bias(*joined_product_and_bias(x, (self.key, self.value)))
        return BeforeNorm(
            self.query(x),
            key_value.reshape(*x.shape[:-1], 2, -1),
            self.query_norm.scale[...],
            self.key_norm.scale[...],
        )


class SelfAttention(nnx.Module):
    """Multi-head attention of one stream to itself; for `max_free` see `attention.attend`."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        *,
        qk_norm: bool,
        out_init: Initializer = xavier_uniform,
        max_free: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        self.max_free = max_free
        common: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.qkv = QKVProjection(width, heads, head_dim, qk_norm=qk_norm, **common)
        self.out = Linear(heads * head_dim, width, axes=("heads", "embed"), kernel_init=out_init, **common)

    def __call__(
        self, x: Float[Array, "*batch S D"], mask: Bool[Array, "*batch S"] | None = None
    ) -> Float[Array, "*batch S D"]:
        return with_bias(*self.product_and_bias(x, mask))

    def product_and_bias(
        self, x: Float[Array, "*batch S D"], mask: Bool[Array, "*batch S"] | None = None
    ) -> tuple[Float[Array, "*batch S D"], Bias]:
        """The result before the output projection's bias is added, and that bias."""
        qkv = self.qkv(x)
        return self.out.product_and_bias(attend(qkv.query, qkv.key, qkv.value, mask, max_free=self.max_free))


class ConditionBranch(nnx.Module):
    """Key and value projections of one branch of the decoupled cross-attention (`attention.decoupled_cross_attention`).

    Values start at zero, so that a new branch adds exactly nothing. Keys start as a copy of the query projection
    `queries`: before anything is learned, image tokens attend to the condition tokens that are most like them, which
    for a reference image are the tokens at the same place.
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
