"""Operations that add the bias of a matrix product in the same pass: with a gated sum, or with QK norm.

Gradients are written out. The sums over tokens that the gradients of biases, gates and scales need then come out of
the same passes (`kernels.token_reduce`). The backward pass keeps the product with its bias (`kernels.remat`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaffect_jax.kernels.norms import NORM_EPS, rms_norm
from genaffect_jax.kernels.partition import run_partitioned
from genaffect_jax.kernels.remat import keep_product
from genaffect_jax.kernels.token_reduce import token_reduce
from genaffect_jax.kernels.token_reduce_reference import over_group


@jax.custom_vjp
def add_bias(product: Float[Array, "*batch o"], bias: Float[Array, " o"]) -> Float[Array, "*batch o"]:
    """`product + bias`, in the type of the product."""
    return product + bias.astype(product.dtype)


def _add_bias_backward(bias: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient, _sum_of_tokens(gradient).astype(bias.dtype)


add_bias.defvjp(lambda product, bias: (add_bias(product, bias), bias), _add_bias_backward)


@jax.custom_vjp
def gated_residual(
    stream: Float[Array, "G *batch L D"],
    gate: Float[Array, "G *batch 1 D"],
    product: Float[Array, "G *batch L D"],
    bias: Float[Array, " D"],
) -> Float[Array, "G *batch L D"]:
    """`stream + gate * (product + bias)` in the type of the stream; the gate is float32.

    The residual connection of adaLN-Zero (Peebles and Xie 2023, arXiv 2212.09748, section 3.2).
    """
    return _gated_residual_forward(stream, gate, product, bias)[0]


def _gated_residual_forward(stream: Array, gate: Array, product: Array, bias: Array) -> tuple[Array, Any]:
    branch = keep_product(product + bias.astype(product.dtype))
    return stream + (gate * branch).astype(stream.dtype), (gate, branch, bias)


def _gated_residual_backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array, Array]:
    gate, branch, bias = kept
    axes = ("batch", *(None,) * (branch.ndim - 1))

    def backward(branch: Array, gradient: Array, gate: Array) -> Any:
        flat = [x.reshape(-1, *x.shape[-2:]) for x in (branch, gradient)]
        (dbranch,), (dgate, total) = token_reduce(
            gated_residual_gradient, flat, (gate.reshape(-1, gate.shape[-1]),), outputs=1, sums=2
        )
        return dbranch.reshape(branch.shape), dgate.reshape(gate.shape), total.reshape(gate.shape)

    dbranch, dgate, total = run_partitioned(
        backward, (branch, gradient, gate), axes=(axes, axes, axes), out=(axes, axes, axes)
    )
    dbias = (gate * total).reshape(-1, bias.shape[0]).sum(axis=0)
    return gradient, dgate, dbranch, dbias.astype(bias.dtype)


def gated_residual_gradient(tokens: Sequence[Array], vectors: Sequence[Array], _numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: the gradient of a gated branch; sums of the gate's gradient, and of the incoming gradient."""
    (branch, gradient), (gate,) = tokens, vectors
    return (gate * gradient,), (gradient * branch, gradient)


gated_residual.defvjp(_gated_residual_forward, _gated_residual_backward)


def _sum_of_tokens(x: Float[Array, "*batch C"]) -> Float[Array, " C"]:
    """The sum over all axes except the last, float32."""
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == jnp.float32:
        return rows.sum(axis=0)
    # A product with ones is exact and runs at a GPU's memory rate. XLA's sum over rows runs at a quarter of that rate.
    ones = jnp.ones((8, rows.shape[0]), x.dtype)
    return jnp.matmul(ones, rows, preferred_element_type=jnp.float32)[0]


@jax.custom_vjp
def bias_and_qk_norm(
    product: Float[Array, "G *batch 3*N*H"],
    bias: Float[Array, " 3*N*H"],
    query_scale: Float[Array, " H"],
    key_scale: Float[Array, " H"],
) -> tuple[Float[Array, "G *batch N H"], Float[Array, "G *batch N H"], Float[Array, "G *batch N H"]]:
    """Queries, keys and values, split into heads, from a joined product and its bias; QK norm included.

    The RMS norm of each head's queries and keys, with learned scales, is that of SD3 (Esser et al. 2024, arXiv
    2403.03206, section 5.3.2).

    Args:
        product: of tokens with the three kernels, joined along the last axis.
        bias: the three biases, joined.
        query_scale, key_scale: learned scales of the norms, for all heads.
    """
    return _heads(product + bias.astype(product.dtype), query_scale, key_scale)


def _heads(joined: Array, query_scale: Array, key_scale: Array) -> tuple[Array, Array, Array]:
    query, key, value = (x.reshape(*x.shape[:-1], -1, query_scale.shape[0]) for x in jnp.split(joined, 3, axis=-1))
    return rms_norm(query, query_scale).astype(query.dtype), rms_norm(key, key_scale).astype(key.dtype), value


def _bias_and_qk_norm_forward(product: Array, bias: Array, query_scale: Array, key_scale: Array) -> Any:
    joined = keep_product(product + bias.astype(product.dtype))
    return _heads(joined, query_scale, key_scale), (joined, bias, query_scale, key_scale)


def _bias_and_qk_norm_backward(kept: Any, gradients: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    joined, bias, query_scale, key_scale = kept
    streams = jnp.split(joined, 3, axis=-1)
    size = query_scale.shape[0]
    tokens, heads = (("batch", *(None,) * (joined.ndim - 2), *last) for last in (("heads",), ("heads", None)))

    def backward(*arrays: Array) -> Any:
        *streams, dquery, dkey, dvalue, query_scale, key_scale = arrays
        width = streams[0].shape[-1]
        joined = [x.reshape(streams[0].shape) for x in (dquery, dkey, dvalue)]
        flat = [jnp.concatenate(x, axis=-1).reshape(1, -1, 3 * width) for x in (streams, joined)]
        count = width // size
        scales = jnp.concatenate([jnp.tile(query_scale, count), jnp.tile(key_scale, count), jnp.ones(width)])
        normed = jnp.concatenate([jnp.ones(2 * width), jnp.zeros(width)])
        (dx,), sums = token_reduce(
            qk_norm_gradient, flat, (scales[None], normed[None]), outputs=1, sums=2, group=size, sections=3
        )
        dx = dx.reshape(*streams[0].shape[:-1], 3 * width)
        return [jnp.split(x, 3, axis=-1) for x in (dx, *sums)]

    summed = [("batch", "heads")] * 3
    streams_axes = [tokens] * 3
    dx, dbias, dscales = run_partitioned(
        backward,
        (*streams, *gradients, query_scale, key_scale),
        axes=(*streams_axes, *[heads] * 3, (None,), (None,)),
        out=[streams_axes, summed, summed],
    )
    dquery_scale, dkey_scale = (
        x.reshape(-1, size).sum(axis=0).astype(s.dtype)
        for x, s in zip(dscales[:2], (query_scale, key_scale), strict=True)
    )
    dbias = jnp.concatenate([x.sum(axis=0) for x in dbias]).astype(bias.dtype)
    return jnp.concatenate(dx, axis=-1), dbias, dquery_scale, dkey_scale


def qk_norm_gradient(tokens: Sequence[Array], vectors: Sequence[Array], _numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: the gradient of RMS norms with scale where `normed` is 1, the incoming gradient elsewhere.

    The first sum is the gradient of the bias, the second that of the scales.
    """
    (x, gradient), (scale, normed) = tokens, vectors
    size = x.shape[-1]
    inverse = jax.lax.rsqrt(over_group(x * x) * (1.0 / size) + NORM_EPS)
    unit = x * inverse
    scaled = gradient * scale
    dx = inverse * (scaled - unit * (over_group(scaled * unit) * (1.0 / size)))
    dx = jnp.where(normed > 0.5, dx, gradient)
    return (dx,), (dx, gradient * unit)


bias_and_qk_norm.defvjp(_bias_and_qk_norm_forward, _bias_and_qk_norm_backward)
