"""Joint and decoupled attention in one kernel: the network's function, the sizes that take it, its lowering for a GPU.

The kernels themselves need a Hopper GPU. Here plain JAX stands in for them, so that everything around them is tested.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import decoupled_kernel

from genaffect_jax.config import ConditioningConfig, MMDiTConfig, ModelConfig
from genaffect_jax.kernels import decoupled_attention as fused
from genaffect_jax.kernels import hopper_decoupled_attention, hopper_decoupled_attention_gradient
from genaffect_jax.kernels.decoupled_attention import Inputs, decoupled_attention, has_decoupled_attention
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.mmdit import attention
from genaffect_jax.models.mmdit.consistent_attention import Sharing, random_tokens

HALF = jnp.dtype("bfloat16")


def small_model(**changes):
    """Two blocks of two heads; 64 image, 2 text, 12 identity and 3 expression tokens."""
    model = ModelConfig(
        mmdit=dataclasses.replace(MMDiTConfig.avatar_tiny(), num_layers=2, register_tokens=2, **changes),
        conditioning=ConditioningConfig(identity_layers=1, identity_tokens=12, expression_tokens=3),
    )
    return build_networks(model)[0]


def random_parameters(network):
    def noisy(name, x):
        return x + 0.2 * jax.random.normal(jax.random.key(len(name)), x.shape) if name in network.trainable else x

    return {name: noisy(name, x) for name, x in network.init(jax.random.key(0)).items()}


def inputs(groups=2, expressions=3, side=16):
    def normal(seed, *shape):
        return jax.random.normal(jax.random.key(seed), shape)

    reference, latents = normal(1, groups, 1, side, side, 16), normal(2, groups, expressions, side, side, 16)
    return reference, latents, jax.random.uniform(jax.random.key(3), (groups, expressions, 40))


def prediction(network, parameters, sharing=None, scale=0.7, pad_identity=False):
    reference, latents, expression = inputs()
    model = network.merge(parameters)
    conditions = model.encode_conditions(reference, jnp.ones(reference.shape[:2], bool), expression)
    if pad_identity:
        conditions = dataclasses.replace(conditions, identity_mask=jnp.ones((2, 12), bool).at[:, -1].set(False))
    sigma = jnp.linspace(0.1, 0.9, latents.shape[1]) * jnp.ones(latents.shape[:2])
    return model(latents, sigma, conditions, identity_scale=scale, expression_scale=1.3, sharing=sharing).prediction


@pytest.fixture
def stand_in(monkeypatch):
    """Plain JAX in place of the kernels, in every type; notes the sizes of each call."""
    calls = []

    def forward(operands, text, expression):
        calls.append((operands.query.shape[1], text, expression, operands.identity_key.shape[1]))
        return decoupled_kernel.forward(operands, text, expression)

    monkeypatch.setattr(hopper_decoupled_attention, "forward", forward)
    monkeypatch.setattr(hopper_decoupled_attention_gradient, "backward", decoupled_kernel.backward)
    monkeypatch.setattr(fused, "is_hopper", lambda: True)
    monkeypatch.setattr(attention, "has_decoupled_attention", lambda _, *sizes: has_decoupled_attention(HALF, *sizes))
    return calls


def test_a_network_with_the_kernel_computes_the_same_function_and_gradients(request):
    network = small_model()
    parameters = random_parameters(network)

    def loss(trainable):
        return jnp.square(prediction(network, {**parameters, **trainable})).sum()

    trainable = network.split(parameters)[0]
    expected, expected_gradients = jax.value_and_grad(loss)(trainable)
    calls = request.getfixturevalue("stand_in")
    found, gradients = jax.value_and_grad(loss)(trainable)
    assert set(calls) == {(64, 2, 3, 12)}
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, gradient in expected_gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=2e-5 * scale + 1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "size", "image", "own", "identity", "taken"),
    [
        ("bfloat16", 64, 256, 16, 64, True),
        ("float16", 64, 64, 64, 1, True),
        ("float32", 64, 256, 16, 64, False),
        ("bfloat16", 32, 256, 16, 64, False),
        ("bfloat16", 64, 320, 16, 64, False),
        ("bfloat16", 64, 100, 16, 64, False),
        ("bfloat16", 64, 256, 65, 64, False),
        ("bfloat16", 64, 256, 16, 65, False),
    ],
)
def test_only_sizes_that_fit_into_shared_memory_take_the_kernel(dtype, size, image, own, identity, taken, monkeypatch):
    sizes = (jnp.dtype(dtype), size, image, own, identity)
    assert not has_decoupled_attention(*sizes)  # no Hopper GPU
    monkeypatch.setattr(fused, "is_hopper", lambda: True)
    assert has_decoupled_attention(*sizes) == taken


@pytest.mark.parametrize(
    ("changes", "case", "calls"),
    [
        ({}, "plain", 2),  # one for each block
        ({}, "consistent attention", 0),
        ({}, "padded identity tokens", 0),
        ({"qk_norm": None}, "plain", 0),
    ],
)
def test_only_attention_of_all_tokens_with_qk_norm_takes_it(changes, case, calls, stand_in):
    network = small_model(scan_layers=False, **changes)
    tokens = random_tokens(jax.random.key(0), 2, 64, 16)
    sharing = Sharing(tokens, anchors=3) if case == "consistent attention" else None
    prediction(network, random_parameters(network), sharing, pad_identity=case == "padded identity tokens")
    assert len(stand_in) == calls


@pytest.mark.parametrize("length", [64, 256])
def test_the_kernels_lower_for_a_gpu(length):
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    scale, own = array(64, dtype=jnp.float32), array(2, 4, 16, 128)
    shapes = Inputs(
        array(2, 4, length, 128),
        array(2, 4, length, 2, 128),
        scale,
        scale,
        array(2, 4, 8, 128),
        *(own, own),
        *[array(2, 40, 128)] * 2,
    )

    def total(x):
        return sum(y.astype(jnp.float32).sum() for y in decoupled_attention(x))

    lowered = jax.jit(jax.grad(total)).trace(shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu") == 3  # forward, queries, keys
