"""Gradients that are written out equal those that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.models.full_product import full_product
from genaffect_jax.models.norms import layer_norm, modulated_norm


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3, 5)])
def test_of_a_product_and_its_kernel(batch):
    x, kernel, weight = normal(0, *batch, 8), normal(1, 8, 6), normal(2, *batch, 6)

    def of(product):
        return jax.grad(lambda x, kernel: jnp.sum(weight * jnp.sin(product(x, kernel))), (0, 1))(x, kernel)

    written, derived = of(lambda x, kernel: full_product(x, kernel, jnp.float32)), of(jnp.matmul)
    for a, b in zip(written, derived, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_of_half_precision_keep_the_types_of_what_was_multiplied():
    x, kernel = normal(0, 3, 8).astype(jnp.bfloat16), normal(1, 8, 6).astype(jnp.bfloat16)
    dx, dkernel = jax.grad(lambda x, kernel: full_product(x, kernel, jnp.float32).sum(), (0, 1))(x, kernel)
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_of_a_modulated_norm_its_shift_and_scale():
    inputs, weight = (normal(0, 2, 3, 5, 64), normal(1, 2, 3, 1, 64), normal(2, 2, 3, 1, 64)), normal(3, 2, 3, 5, 64)

    def of(function):
        return jax.value_and_grad(lambda *a: jnp.sum(weight * jnp.sin(function(*a))), (0, 1, 2))(*inputs)

    value, written = of(lambda *a: sum(modulated_norm(*a)))
    expected, derived = of(lambda x, shift, scale: x + layer_norm(x) * (1.0 + scale) + shift)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(written, derived, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
