"""Linear layers: what they multiply and in which type, alone and several as one product."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.models.layers import Linear, joined_product


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_multiplies_in_its_type_and_adds_its_bias(dtype):
    layer = Linear(256, 64, axes=(None, None), rngs=nnx.Rngs(0), dtype=dtype)
    layer.bias.set_value(jnp.asarray(normal(5, 64)))
    x = jnp.asarray(normal(4, 9, 256))
    expected = x.astype(dtype) @ layer.kernel[...].astype(dtype) + layer.bias[...].astype(dtype)
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(layer.biased(joined_product(x, [layer])), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_joined_product_is_the_products_of_its_layers(dtype):
    layers = [Linear(256, 32, axes=(None, None), rngs=nnx.Rngs(i), dtype=dtype) for i in range(3)]
    x = jnp.asarray(normal(3, 5, 256))
    for joined, single in zip(jnp.split(joined_product(x, layers), 3, axis=-1), layers, strict=True):
        assert joined.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(joined, np.float32), np.asarray(single.product(x), np.float32), rtol=1e-5, atol=1e-5
        )
