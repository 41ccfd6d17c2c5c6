"""The two products of a feed-forward network with GELU between them, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaffect_jax.kernels.matmul import input_gradient, kernel_gradient, matmul
from genaffect_jax.kernels.partition import run_partitioned
from genaffect_jax.kernels.remat import keep_product
from genaffect_jax.kernels.token_reduce import token_reduce

# GELU in its tanh form: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def gelu_products(
    x: Float[Array, "G *batch i"],
    up: Float[Array, "i h"],
    bias: Float[Array, " h"],
    down: Float[Array, "h o"],
    dtype: Any,
) -> Float[Array, "G *batch o"]:
    """`gelu(x @ up + bias) @ down`, with GELU in its tanh form.

    The gradients are written out. The backward pass keeps `x @ up + bias` (`kernels.remat`). One pass over the tokens
    (`kernels.token_reduce`) computes GELU again, its gradient, and the gradient of the bias.

    Args:
        x: tokens.
        up, bias, down: parameters.
        dtype: type of the factors, of the sums and of the result.
    """
    return _forward(x, up, bias, down, dtype)[0]


def _forward(x: Array, up: Array, bias: Array, down: Array, dtype: Any) -> tuple[Array, tuple[Array, ...]]:
    before = matmul(x.astype(dtype), up.astype(dtype), dtype) + bias.astype(dtype)
    y = matmul(jax.nn.gelu(before), down.astype(dtype), dtype)
    # Only the kept copy is named. JAX rounds a named value before its other uses, and cuBLAS could then not compute
    # GELU within the product.
    return y, (x, keep_product(before), up, bias, down)


def _backward(dtype: Any, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, before, up, bias, down = kept
    tokens = ("batch", *(None,) * (before.ndim - 2), "mlp")

    def through_gelu(before: Array, gradient: Array) -> Any:
        flat = [a.reshape(1, -1, a.shape[-1]) for a in (before, gradient)]
        made, (dbias,) = token_reduce(gelu_gradient, flat, outputs=2, sums=1)
        return *(a.reshape(before.shape) for a in made), dbias

    after, dbefore, dbias = run_partitioned(
        through_gelu,
        (before, input_gradient(gradient, down.astype(dtype), dtype)),
        axes=(tokens, tokens),
        out=(tokens, tokens, ("batch", "mlp")),
    )
    return (
        input_gradient(dbefore, up.astype(dtype), dtype).astype(x.dtype),
        kernel_gradient(x.astype(dtype), dbefore, dtype).astype(up.dtype),
        dbias.sum(axis=0).astype(bias.dtype),
        kernel_gradient(after, gradient, dtype).astype(down.dtype),
    )


def gelu_gradient(tokens: Sequence[Array], _vectors: Sequence[Array], _numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: GELU and its gradient; the sum is that of the gradient."""
    x, gradient = tokens
    square = x * x
    tanh = jnp.tanh(GELU_SCALE * x * (1.0 + GELU_CUBE * square))
    half = 0.5 * (1.0 + tanh)
    slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * square)
    dx = gradient * (half + 0.5 * x * (1.0 - tanh * tanh) * slope)
    return (x * half, dx), (dx,)


gelu_products.defvjp(_forward, _backward)
