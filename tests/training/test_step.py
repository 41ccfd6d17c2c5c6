"""The training step: same losses on any mesh, traced once, repeatable, and it learns."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from genaffect_jax.config import MeshConfig
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import learning_rate, make_optimizer
from genaffect_jax.training.state import create_state, state_shardings
from genaffect_jax.training.step import device_batch, make_train_step

GROUPS, EXPRESSIONS = 8, 2


def batches():
    rng = np.random.default_rng(0)
    while True:
        yield {
            "reference": rng.standard_normal((GROUPS, 1, 8, 8, 4), np.float32),
            "target": rng.standard_normal((GROUPS, EXPRESSIONS, 8, 8, 4), np.float32),
            "expression": rng.random((GROUPS, EXPRESSIONS, 40), np.float32),
        }


@functools.cache
def start(model, train):
    """The state that a training begins with, made on one device and kept on the host: a step donates its own."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return jax.device_get(create_state(build_networks(model)[0], make_optimizer(train), mesh, train.seed))


@functools.cache
def program(config, mesh, gradient_accumulation_steps):
    """The step, compiled once for all tests, and the places of its state."""
    denoiser, autoencoder = build_networks(config.model)
    optimizer = make_optimizer(config.train)
    step = make_train_step(
        denoiser,
        make_denoiser_loss(config.flow, autoencoder),
        optimizer,
        ema_decay=0.99,
        seed=0,
        mesh=mesh,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    return step, state_shardings(denoiser, optimizer, mesh)


def run(config, mesh, steps, stream=None, gradient_accumulation_steps=1):
    train_step, shardings = program(config, mesh, gradient_accumulation_steps)
    state, losses = jax.device_put(start(config.model, config.train), shardings), []
    for batch in itertools.islice(stream or batches(), steps):
        state, metrics = train_step(state, {}, device_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return state, losses, train_step


@pytest.fixture(scope="module")
def two_blocks(tiny_config, tiny_model):
    """One block of each kind: the last has no text to update."""
    return dataclasses.replace(tiny_config, model=tiny_model)


@pytest.fixture(scope="module")
def alone(two_blocks):
    """Parameters and losses of 20 steps on one device."""
    state, losses, _ = run(two_blocks, make_mesh(MeshConfig(), jax.devices()[:1]), 20)
    return state.parameters, losses


def test_every_mesh_begins_with_the_same_state(two_blocks):
    mesh, optimizer = make_mesh(MeshConfig(2, 2, 2)), make_optimizer(two_blocks.train)
    state = create_state(build_networks(two_blocks.model)[0], optimizer, mesh, two_blocks.train.seed)
    expected = start(two_blocks.model, two_blocks.train)
    for found, value in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_losses_and_parameters_on_eight_devices_equal_those_on_one_and_the_step_is_traced_once(
    two_blocks, alone, sizes
):
    parameters, expected = alone
    together, losses, train_step = run(two_blocks, make_mesh(MeshConfig(*sizes)), 20)
    assert train_step._cache_size() == 1
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, value in parameters.items():
        np.testing.assert_allclose(together.parameters[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 1)])
def test_a_batch_in_parts_makes_the_step_of_the_whole_batch(tiny_config, sizes):
    # Weighted by change, so that the parts' counts differ.
    config = dataclasses.replace(tiny_config, flow=dataclasses.replace(tiny_config.flow, change_weight=2.0))
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    whole, expected, _ = run(config, mesh, 3)
    parts, losses, step = run(config, mesh, 3, gradient_accumulation_steps=2)
    assert step._cache_size() == 1
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, value in whole.parameters.items():
        np.testing.assert_allclose(parts.parameters[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_adafactor_keeps_rows_and_columns_and_learns_on_a_cut_state(tiny_config):
    train = dataclasses.replace(tiny_config.train, optimizer="adafactor", steps=30, learning_rate=0.01)
    config = dataclasses.replace(tiny_config, train=train)
    wide = dataclasses.replace(
        config.model,
        mmdit=dataclasses.replace(config.model.mmdit, attention_head_dim=64, num_attention_heads=2),
    )
    config = dataclasses.replace(config, model=wide)
    # With empty images the velocity is the noise, which the noisy input shows in full.
    batch = {**next(batches()), "target": np.zeros((GROUPS, EXPRESSIONS, 8, 8, 4), np.float32)}
    state, losses, _ = run(config, make_mesh(MeshConfig(1, 4, 2)), 30, itertools.repeat(batch))
    kernel, moments = state.parameters["mmdit.segments.0.layers.image_mlp.up.kernel"], state.optimizer[1]
    assert moments.v_row["mmdit.segments.0.layers.image_mlp.up.kernel"].shape == (kernel.shape[0], kernel.shape[1])
    assert sum(x.size for x in jax.tree.leaves(state.optimizer)) < 0.2 * sum(x.size for x in state.parameters.values())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_old_state_is_donated(tiny_config):
    mesh = make_mesh(MeshConfig())
    step, shardings = program(tiny_config, mesh, 1)
    state = jax.device_put(start(tiny_config.model, tiny_config.train), shardings)
    step(state, {}, device_batch(next(batches()), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.parameters, state.ema, state.optimizer)))


def test_the_loss_falls_on_a_repeated_batch(tiny_config):
    config = dataclasses.replace(
        tiny_config, train=dataclasses.replace(tiny_config.train, steps=60, learning_rate=0.01)
    )
    # With empty images the velocity is the noise, which the noisy input shows in full (divided by sigma).
    batch = {**next(batches()), "target": np.zeros((8, 2, 8, 8, 4), np.float32)}
    _, losses, _ = run(config, make_mesh(MeshConfig(), jax.devices()[:1]), 30, itertools.repeat(batch))
    assert np.mean(losses[-10:]) < 0.15 * np.mean(losses[:3])


def test_the_average_follows_the_parameters_at_the_stated_decay(tiny_config):
    first, _, _ = run(tiny_config, make_mesh(MeshConfig()), 1)
    before = start(tiny_config.model, tiny_config.train).parameters
    decay = 1 / 10  # min(0.99, (1 + 0) / (10 + 0))
    for name, value in first.parameters.items():
        np.testing.assert_allclose(first.ema[name], decay * before[name] + (1 - decay) * value, atol=1e-6, err_msg=name)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    batch = {"target": np.zeros((6, 2, 8, 8, 4), np.float32)}
    with pytest.raises(ValueError, match="6 examples do not divide over 8 parts"):
        device_batch(batch, make_mesh(MeshConfig()))


def test_the_learning_rate_warms_up_and_decays(tiny_config):
    config = dataclasses.replace(tiny_config.train, steps=100, warmup_steps=10, learning_rate=1.0)
    rate = learning_rate(config)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(100)) == pytest.approx(0.01)
    constant = learning_rate(dataclasses.replace(config, schedule="constant"))
    assert float(constant(99)) == pytest.approx(1.0)
