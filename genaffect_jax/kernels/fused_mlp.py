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
from genaffect_jax.parallel.xla import platform

# GELU in its tanh form: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def gelu_products(
    x: Float[Array, "G *batch i"],
    up: Float[Array, "i h"],
    bias: Float[Array, " h"],
    down: Float[Array, "h o"],
    dtype: Any,
    keep_activation: bool,
) -> Float[Array, "G *batch o"]:
    """`gelu(x @ up + bias) @ down`, with GELU in its tanh form.

    The gradients are written out. The backward pass keeps `x @ up + bias` (`kernels.remat`). One pass over the tokens
    (`kernels.token_reduce`) computes the gradient of GELU, that of the bias, and unless it was kept, GELU again.

    Args:
        x: tokens.
        up, bias, down: parameters.
        dtype: type of the factors, of the sums and of the result.
        keep_activation: whether the backward pass keeps the result of GELU too: faster on accelerators, for as much
            memory again. On a CPU, where it is not faster, it is computed again all the same. Under a rematerialisation
            policy, which would compute it in a pass of its own, it should not be kept.
    """
    return _forward(x, up, bias, down, dtype, keep_activation)[0]


def _forward(
    x: Array, up: Array, bias: Array, down: Array, dtype: Any, keep_activation: bool
) -> tuple[Array, tuple[Any, ...]]:
    before = matmul(x.astype(dtype), up.astype(dtype), dtype) + bias.astype(dtype)
    after = jax.nn.gelu(before)
    y = matmul(after, down.astype(dtype), dtype)
    # Only the kept copy is named. JAX rounds a named value before its other uses, and cuBLAS could then not compute
    # GELU within the product.
    keep_activation = keep_activation and platform() != "cpu"
    return y, (x, keep_product(before), after if keep_activation else None, up, bias, down)


def _backward(dtype: Any, _: bool, kept: tuple[Any, ...], gradient: Array) -> tuple[Array, ...]:
    x, before, after, up, bias, down = kept
    tokens = ("batch", *(None,) * (before.ndim - 2), "mlp")

    def through_gelu(before: Array, gradient: Array) -> Any:
        flat = [a.reshape(1, -1, a.shape[-1]) for a in (before, gradient)]
        function, outputs = (gelu_and_gradient, 2) if after is None else (gelu_gradient, 1)
        made, (dbias,) = token_reduce(function, flat, outputs=outputs, sums=1)
        return [a.reshape(before.shape) for a in made], dbias

    made, dbias = run_partitioned(
        through_gelu,
        (before, input_gradient(gradient, down.astype(dtype), dtype)),
        axes=(tokens, tokens),
        out=([tokens] * (2 if after is None else 1), ("batch", "mlp")),
    )
    dbefore, after = made[0], made[1] if after is None else after
    return (
        input_gradient(dbefore, up.astype(dtype), dtype).astype(x.dtype),
        kernel_gradient(x.astype(dtype), dbefore, dtype).astype(up.dtype),
        dbias.sum(axis=0).astype(bias.dtype),
        kernel_gradient(after, gradient, dtype).astype(down.dtype),
    )


def gelu_gradient(tokens: Sequence[Array], vectors: Sequence[Array], numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: the gradient of GELU, and its sum."""
    (dx, _), sums = gelu_and_gradient(tokens, vectors, numbers)
    return (dx,), sums


def gelu_and_gradient(tokens: Sequence[Array], _vectors: Sequence[Array], _numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: the gradient of GELU, and GELU; the sum is that of the gradient."""
    x, gradient = tokens
    square = x * x
    tanh = jnp.tanh(GELU_SCALE * x * (1.0 + GELU_CUBE * square))
    half = 0.5 * (1.0 + tanh)
    slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * square)
    dx = gradient * (half + 0.5 * x * (1.0 - tanh * tanh) * slope)
    return (dx, x * half), (dx,)


gelu_products.defvjp(_forward, _backward)
