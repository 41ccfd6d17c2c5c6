"""Linear layers: what they multiply and in which type, alone and several as one product."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.models.layers import Linear, joined_product_and_bias, with_bias


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_multiplies_in_its_type_and_adds_its_bias(dtype):
    layer = Linear(256, 64, axes=(None, None), rngs=nnx.Rngs(0), dtype=dtype)
    layer.bias.set_value(jnp.asarray(normal(5, 64)))
    x = jnp.asarray(normal(4, 9, 256))
    expected = x.astype(dtype) @ layer.kernel[...].astype(dtype) + layer.bias[...].astype(dtype)
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(with_bias(*joined_product_and_bias(x, [layer])), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_joined_product_is_the_products_of_its_layers_and_their_biases(dtype):
    layers = [Linear(256, 32, axes=(None, None), rngs=nnx.Rngs(i), dtype=dtype) for i in range(3)]
    x = jnp.asarray(normal(3, 5, 256))
    for i, layer in enumerate(layers):
        layer.bias.set_value(jnp.asarray(normal(10 + i, 32)))
    product, bias = joined_product_and_bias(x, layers)
    assert product.dtype == dtype
    for joined, part, layer in zip(jnp.split(product, 3, axis=-1), jnp.split(bias, 3), layers, strict=True):
        expected, expected_bias = layer.product_and_bias(x)
        np.testing.assert_allclose(
            np.asarray(joined, np.float32), np.asarray(expected, np.float32), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_array_equal(part, expected_bias)
