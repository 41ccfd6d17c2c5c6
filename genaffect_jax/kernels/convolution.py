"""The convolution of images, whose kernel's gradient is summed over devices in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from genaffect_jax.kernels.gradient_sums import rounded, sum_dtype

Padding = tuple[tuple[int, int], tuple[int, int]]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W i"], kernel: Float[Array, "k l i o"], strides: tuple[int, int], padding: Padding
) -> Float[Array, "B h w o"]:
    """`x` convolved with a kernel of the same type, in that type.

    Args:
        x: images.
        kernel: the kernel.
        strides: steps between output pixels, in rows and columns.
        padding: rows of zeros above and below, and columns left and right.
    """
    return _convolve(x, kernel, strides, padding)


def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, int], padding: Padding, kept: tuple[Array, Array], gradient: Array) -> Any:
    x, kernel = kept
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, strides, padding), x)(gradient)
    if sum_dtype(x, kernel.dtype) == kernel.dtype:
        (dkernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel, strides, padding), kernel)(gradient)
        return dx, dkernel
    # The last pixels of a padded image, which no output pixel of a strided convolution sees, are left out.
    edges = [
        (low, size + (outputs - 1) * stride - pixels - low)
        for (low, _), size, pixels, outputs, stride in zip(
            padding, kernel.shape[:2], x.shape[1:3], gradient.shape[1:3], strides, strict=True
        )
    ]
    # Every pixel of the kernel sees all images, which take the place of the channels that are summed over.
    total = jax.lax.conv_general_dilated(
        x,
        gradient,
        (1, 1),
        edges,
        rhs_dilation=strides,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=sum_dtype(x, kernel.dtype),
    )
    return dx, rounded(total, kernel.dtype)


convolve.defvjp(_forward, _backward)
