"""Normalisations of tokens, computed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaffect_jax.kernels.partition import run_partitioned
from genaffect_jax.kernels.token_reduce import token_reduce

# Layer and RMS norms of the SD3 family share this epsilon.
NORM_EPS = 1e-6


def rms_norm(x: Float[Array, "*batch d"], scale: Float[Array, " d"]) -> Float[Array, "*batch d"]:
    """Root-mean-square normalisation of the last axis with a learned scale; the result is float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS) * scale


def layer_norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Layer normalisation of the last axis without learned scale or shift; the result is float32."""
    return _standardised(x, *_statistics(x))


def _statistics(x: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch 1"]]:
    """Mean and inverse standard deviation of the last axis, float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True) + NORM_EPS)


def _standardised(x: Array, mean: Array, inverse: Array) -> Array:
    return (x.astype(jnp.float32) - mean) * inverse


@jax.custom_vjp
def modulated_norm(
    x: Float[Array, "G *batch L D"], shift: Float[Array, "G *batch 1 D"], scale: Float[Array, "G *batch 1 D"]
) -> tuple[Float[Array, "G *batch L D"], Float[Array, "G *batch L D"]]:
    """`x`, and `layer_norm(x) * (1 + scale) + shift` in the type of `x`; shift and scale are float32.

    The modulated norm of adaLN (Peebles and Xie 2023, arXiv 2212.09748, section 3.2). A network that goes on with both
    should take `x` from here: one pass then computes the gradient of the norm and adds the other to it.

    That gradient is written out. It reads `x` and the statistics of each token. The derived gradient would keep, or
    compute again, a float32 copy of the normalised tokens for each sum that needs it.
    """
    return _modulated_norm_forward(x, shift, scale)[0]


def _modulated_norm_forward(x: Array, shift: Array, scale: Array) -> tuple[tuple[Array, Array], Any]:
    mean, inverse = _statistics(x)
    normed = _standardised(x, mean, inverse) * (1.0 + scale) + shift
    return (x, normed.astype(x.dtype)), (x, mean, inverse, scale)


def _modulated_norm_backward(kept: Any, gradients: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = kept
    axes = ("batch", *(None,) * (x.ndim - 1))

    def backward(x: Array, passed: Array, gradient: Array, factor: Array, *numbers: Array) -> Any:
        tokens = [a.reshape(-1, *a.shape[-2:]) for a in (x, passed, gradient)]
        (dx,), sums = token_reduce(
            norm_gradient,
            tokens,
            (factor.reshape(-1, factor.shape[-1]),),
            [n.reshape(-1, n.shape[-2]) for n in numbers],
            outputs=1,
            sums=2,
        )
        return dx.reshape(x.shape), *(total.reshape(factor.shape) for total in sums)

    factor = 1.0 + scale
    scaled = gradients[1].astype(jnp.float32) * factor
    along_mean = jnp.mean(scaled, axis=-1, keepdims=True)
    along_normed = jnp.mean(scaled * _standardised(x, mean, inverse), axis=-1, keepdims=True)
    arrays = (x, *gradients, factor, mean, inverse, along_mean, along_normed)
    return run_partitioned(backward, arrays, axes=(axes,) * len(arrays), out=(axes, axes, axes))


def norm_gradient(tokens: Sequence[Array], vectors: Sequence[Array], numbers: Sequence[Array]) -> Any:
    """For `token_reduce`: the gradient of a modulated norm plus `passed`; sums of the shift's and scale's gradients."""
    (x, passed, gradient), (factor,), (mean, inverse, along_mean, along_normed) = tokens, vectors, numbers
    normed = (x - mean) * inverse
    dx = passed + inverse * (gradient * factor - along_mean - normed * along_normed)
    return (dx,), (gradient, gradient * normed)


modulated_norm.defvjp(_modulated_norm_forward, _modulated_norm_backward)
