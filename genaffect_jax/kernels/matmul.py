"""The matrix product of tokens with a kernel, and its gradients as products of matrices."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaffect_jax.kernels.gradient_sums import rounded, sum_dtype


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"], out_dtype: Any) -> Float[Array, "*batch o"]:
    """`x @ kernel` over the last axis of `x`; sums and result have type `out_dtype`.

    The gradients are the usual ones, but that of the kernel sums over the rows of two matrices. For a sum over several
    axes of tokens, XLA would choose a layout with features first for the factors and transpose everything else.
    """
    return jnp.matmul(x, kernel, preferred_element_type=out_dtype)


def _forward(x: Array, kernel: Array, out_dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel, out_dtype), (x, kernel)


def _backward(_out_dtype: Any, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return input_gradient(gradient, kernel, x.dtype), kernel_gradient(x, gradient, kernel.dtype)


def input_gradient(
    gradient: Float[Array, "*batch o"], kernel: Float[Array, "i o"], dtype: Any
) -> Float[Array, "*batch i"]:
    """The gradient of `x` from that of `x @ kernel`, in `dtype`."""
    return jnp.matmul(gradient, kernel.T, preferred_element_type=dtype)


def kernel_gradient(x: Float[Array, "*batch i"], gradient: Float[Array, "*batch o"], dtype: Any) -> Float[Array, "i o"]:
    """The gradient of the kernel from that of `x @ kernel`, in `dtype`; summed over devices in float32."""
    rows = prod(x.shape[:-1])
    total = jax.lax.dot_general(
        x.reshape(rows, x.shape[-1]),
        gradient.reshape(rows, gradient.shape[-1]),
        (((0,), (0,)), ((), ())),
        preferred_element_type=sum_dtype(x, dtype),
    )
    return rounded(total, dtype)


matmul.defvjp(_forward, _backward)
