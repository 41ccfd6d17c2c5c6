"""Group normalisation of images with SiLU after it, and its gradient in as few passes over the pixels as possible.

The derived gradient keeps float32 copies of the normalised pixels, and sums over pixels run at a quarter of a GPU's
memory rate in XLA. On Hopper GPUs the backward pass therefore reads the pixels and the incoming gradient twice: once
for all sums (`kernels.token_reduce`), once for the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from genaffect_jax.kernels.partition import Axes, run_partitioned
from genaffect_jax.kernels.token_reduce import token_reduce
from genaffect_jax.kernels.token_reduce_reference import STRIP, TokenFunction
from genaffect_jax.parallel.xla import is_hopper

_IMAGES: Axes = ("batch", None, None, None)
_VECTORS: Axes = ("batch", None)


def group_norm(
    x: Float[Array, "B H W C"],
    scale: Float32[Array, " C"],
    bias: Float32[Array, " C"],
    groups: int,
    epsilon: float,
    silu: bool,
) -> Float[Array, "B H W C"]:
    """Group normalisation (Wu and He 2018, arXiv 1803.08494, equation 1) with learned scale and bias, then SiLU.

    Statistics and arithmetic are float32; the result has the type of `x`.

    Args:
        x: images.
        scale, bias: learned, one for each channel.
        groups: number of groups of neighbouring channels, a divisor of C.
        epsilon: added to the variance.
        silu: whether SiLU follows.
    """
    if is_hopper():
        return _with_written_gradient(x, scale, bias, groups, epsilon, silu)
    # On a CPU the derived gradient, which keeps SiLU's sigmoid and computes it once, takes a tenth less time.
    return _forward(x, scale, bias, groups, epsilon, silu)[0]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _with_written_gradient(x: Array, scale: Array, bias: Array, groups: int, epsilon: float, silu: bool) -> Array:
    return _forward(x, scale, bias, groups, epsilon, silu)[0]


def _forward(x: Array, scale: Array, bias: Array, groups: int, epsilon: float, silu: bool) -> tuple[Array, Any]:
    wide = x.astype(jnp.float32)
    mean = _per_group(wide.mean((1, 2)), groups)
    # Two passes: E[x^2] - E[x]^2 loses digits when a channel's mean is large beside its spread.
    variance = _per_group(jnp.square(wide - mean[:, None, None]).mean((1, 2)), groups)
    inverse = jax.lax.rsqrt(variance + epsilon)
    # Statistics, scale and bias are folded into one multiply-add per pixel.
    factor = inverse * scale
    y = wide * factor[:, None, None] + (bias - mean * factor)[:, None, None]
    y = jax.nn.silu(y) if silu else y
    return y.astype(x.dtype), (x, scale, bias, mean, inverse)


def _backward(
    groups: int, epsilon: float, silu: bool, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, inverse = kept
    factor = inverse * scale
    vectors = (factor, bias - mean * factor, inverse, mean * inverse)
    function, terms = (_silu_gradient, _silu_terms) if silu else (_plain_gradient, _plain_terms)
    total, along_unit = run_partitioned(
        partial(_sums, terms), (x, gradient, *vectors), axes=(*(_IMAGES,) * 2, *(_VECTORS,) * 4), out=(_VECTORS,) * 2
    )
    pixels = x.shape[1] * x.shape[2]
    mean_of, mean_along_unit = (_per_group(scale * sums, groups) / pixels for sums in (total, along_unit))
    spread = [v[:, None, None] for v in (*vectors, scale * inverse, inverse * mean_of, inverse * mean_along_unit)]
    change, unit = function((x.astype(jnp.float32), gradient.astype(jnp.float32)), spread[:4])
    dx = spread[4] * change - spread[5] - unit * spread[6]
    return dx.astype(x.dtype), along_unit.sum(axis=0), total.sum(axis=0)


_with_written_gradient.defvjp(_forward, _backward)


def _per_group(values: Float32[Array, "B C"], groups: int) -> Float32[Array, "B C"]:
    """The mean of each group, for each of its channels."""
    grouped = values.reshape(len(values), groups, -1).mean(-1, keepdims=True)
    return jnp.broadcast_to(grouped, (len(values), groups, values.shape[1] // groups)).reshape(values.shape)


def _plain_gradient(images: Sequence[Array], vectors: Sequence[Array]) -> tuple[Array, Array]:
    """The gradient after scale and bias, and the normalised pixels."""
    (x, gradient), (_, _, inverse, shift) = images, vectors
    return gradient, x * inverse - shift


def _silu_gradient(images: Sequence[Array], vectors: Sequence[Array]) -> tuple[Array, Array]:
    """`_plain_gradient` with the gradient of SiLU."""
    (x, gradient), (factor, offset, _, _) = images, vectors
    y = x * factor + offset
    sigmoid = 1.0 / (1.0 + jnp.exp(-y))
    return gradient * sigmoid * (1.0 + y * (1.0 - sigmoid)), _plain_gradient(images, vectors)[1]


def _plain_terms(tokens: Sequence[Array], vectors: Sequence[Array], _numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: the sums of `_plain_gradient`, and of its product with the normalised pixels."""
    change, unit = _plain_gradient(tokens, vectors)
    return (), (change, change * unit)


def _silu_terms(tokens: Sequence[Array], vectors: Sequence[Array], _numbers: Sequence[Array]) -> Any:
    """`_plain_terms` with the gradient of SiLU."""
    change, unit = _silu_gradient(tokens, vectors)
    return (), (change, change * unit)


def _sums(terms: TokenFunction, x: Array, gradient: Array, *vectors: Array) -> tuple[Array, Array]:
    """The sums of `terms` over the pixels of each image and channel."""
    B, H, W, C = x.shape
    # Where channels are few, several pixels stand side by side, so that they fill a strip of features.
    beside = STRIP // C if STRIP % C == 0 and H * W % (STRIP // C) == 0 else 1
    _, sums = token_reduce(
        terms,
        [a.reshape(B, -1, beside * C) for a in (x, gradient)],
        [jnp.tile(v, (1, beside)) for v in vectors],
        outputs=0,
        sums=2,
    )
    total, along_unit = (s.reshape(B, beside, C).sum(axis=1) for s in sums)
    return total, along_unit
