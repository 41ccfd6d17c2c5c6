"""Group normalisation with a gradient written out: the derived gradient, in both types, and its lowering for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.kernels import group_norm as module
from genaffect_jax.kernels import token_reduce
from genaffect_jax.kernels.group_norm import group_norm

EPSILON = 1e-6


def textbook(x, scale, bias, groups, silu):
    """Equation 1 of the paper, in the shape [B, H, W, groups, channels of a group]."""
    grouped = x.reshape(*x.shape[:3], groups, -1)
    mean, variance = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
    y = ((grouped - mean) / jnp.sqrt(variance + EPSILON)).reshape(x.shape) * scale + bias
    return jax.nn.silu(y) if silu else y


def arrays(channels, side=6):
    def normal(seed, *shape):
        return jax.random.normal(jax.random.key(seed), shape)

    x = 3.0 + normal(0, 2, side, side + 2, channels)
    return x, 1 + 0.3 * normal(1, channels), normal(2, channels), normal(3, *x.shape)


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(32, 16), (64, 8), (48, 6), (8, 8)])
def test_values_and_gradients_are_those_of_the_textbook(channels, groups, silu, hopper, monkeypatch):
    monkeypatch.setattr(module, "is_hopper", lambda: hopper)
    *given, cotangent = arrays(channels)
    expected, backward = jax.vjp(lambda *a: textbook(*a, groups, silu), *given)
    found, written = jax.vjp(lambda *a: group_norm(*a, groups, EPSILON, silu), *given)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for a, b in zip(written(cotangent), backward(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_half_precision_rounds_only_what_goes_in_and_out(monkeypatch):
    monkeypatch.setattr(module, "is_hopper", lambda: True)
    *given, cotangent = arrays(32)
    x, cotangent = (a.astype(jnp.bfloat16) for a in (given[0], cotangent))
    wide = [x.astype(jnp.float32), *given[1:]]
    expected, backward = jax.vjp(lambda *a: group_norm(*a, 8, EPSILON, True), *wide)
    found, written = jax.vjp(lambda *a: group_norm(*a, 8, EPSILON, True), x, *given[1:])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
    for a, b in zip(written(cotangent), backward(cotangent.astype(jnp.float32)), strict=True):
        np.testing.assert_allclose(a, b.astype(a.dtype), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("channels", [32, 64, 128])
def test_sums_over_pixels_are_made_by_the_kernel_on_a_hopper_gpu(channels, monkeypatch):
    for each in (module, token_reduce):
        monkeypatch.setattr(each, "is_hopper", lambda: True)
    x = jax.ShapeDtypeStruct((2, 16, 16, channels), jnp.bfloat16)
    vector = jax.ShapeDtypeStruct((channels,), jnp.float32)

    def total(x, scale, bias):
        return group_norm(x, scale, bias, 8, EPSILON, True).astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(total)).trace(x, vector, vector).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu") == 1
