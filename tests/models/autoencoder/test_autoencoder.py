"""The autoencoder's conventions, its objective, and that it learns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genaffect_jax.config import AutoencoderConfig
from genaffect_jax.data.augment import random_scene
from genaffect_jax.models.autoencoder.model import AutoencoderKL, Posterior, normalise, to_uint8
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.training.autoencoder.loss import autoencoder_loss, latent_statistics

CONFIG = AutoencoderConfig(
    block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, shift_factor=0.3, scaling_factor=2.5
)
NETWORK = Functional(lambda rngs: AutoencoderKL(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        scale = np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.1
        return jnp.asarray(scale * rng.standard_normal(shape) + name.endswith("scale"), jnp.float32)

    return {name: draw(name, s.shape) for name, s in NETWORK.shapes.items()}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([random_scene(np.random.default_rng(i), 16) for i in range(8)])


def test_every_byte_survives_normalise_and_to_uint8() -> None:
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(16, 16, 1)
    numbers = normalise(levels)
    assert float(numbers.min()) == -1.0
    assert float(numbers.max()) == 1.0
    np.testing.assert_array_equal(to_uint8(numbers), levels)
    np.testing.assert_array_equal(to_uint8(jnp.array([[[-1.7], [1.7]]])), [[[0], [255]]])
    with pytest.raises(TypeError, match="float32, must be uint8"):
        normalise(numbers)


def test_tiny_preset_makes_16x16x16_latents_of_128_px_within_a_million_parameters() -> None:
    network = Functional(lambda rngs: AutoencoderKL(AutoencoderConfig.avatar_tiny(), rngs=rngs))
    latents = jax.eval_shape(lambda p: network.merge(p).to_latents(jnp.zeros((2, 3, 128, 128, 3))), network.shapes)
    assert latents.shape == (2, 3, 16, 16, 16)
    assert network.size < 1.01e6  # 2 MB in bfloat16, small enough for the package
    assert AutoencoderConfig.sd3().downsample == AutoencoderConfig.avatar_tiny().downsample == 8


def test_posterior_samples_have_its_mean_and_variance_and_its_divergence_is_gaussian() -> None:
    posterior = Posterior(jnp.full((100, 10, 10, 1), 0.7), jnp.full((100, 10, 10, 1), 2 * np.log(0.5)))
    sample = posterior.sample(jax.random.key(0))
    assert float(sample.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(sample.std()) == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(posterior.mode(), posterior.mean)
    each = 0.5 * (0.7**2 + 0.25 - 1 - np.log(0.25))  # KL(N(0.7, 0.5^2) || N(0, 1))
    np.testing.assert_allclose(posterior.kl(), np.full(100, 100 * each), rtol=1e-5)


def test_log_variance_is_clipped(parameters, images) -> None:
    bias = jnp.concatenate([jnp.zeros(4), jnp.array([1e3, -1e3, 0.0, 0.0])])
    posterior = NETWORK.merge({**parameters, "encoder.conv_out.bias": bias}).encode(normalise(images[:1]))
    assert float(posterior.logvar[..., 0].min()) == 20.0
    assert float(posterior.logvar[..., 1].max()) == -30.0


def test_latents_are_the_shifted_and_scaled_mode_and_decode_undoes_it(parameters, images) -> None:
    model = NETWORK.merge(parameters)
    x = normalise(images[:2])
    z = model.encode(x).mode()
    np.testing.assert_allclose(model.to_latents(x), (z - 0.3) * 2.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.from_latents(model.to_latents(x)), model.decode(z), rtol=1e-4, atol=1e-5)


def test_leading_axes_do_not_mix_images(parameters, images) -> None:
    model = NETWORK.merge(parameters)
    x = normalise(images)
    nested = model.to_latents(x.reshape(2, 2, 2, 16, 16, 3))
    assert nested.shape == (2, 2, 2, 8, 8, 4)
    np.testing.assert_allclose(nested.reshape(8, 8, 8, 4), model.to_latents(x), atol=1e-5)
    np.testing.assert_allclose(nested[1, 0, 1], model.to_latents(x[5]), atol=1e-5)
    np.testing.assert_allclose(model.from_latents(nested)[0, 1, 0], model.from_latents(nested[0, 1, 0]), atol=1e-5)


def test_bfloat16_compute_stays_near_float32_and_returns_float32(parameters, images) -> None:
    half = Functional(lambda rngs: AutoencoderKL(CONFIG, dtype=jnp.bfloat16, rngs=rngs))
    assert {s.dtype for s in half.shapes.values()} == {jnp.dtype(jnp.float32)}
    x = normalise(images)
    exact, cast_kernels = NETWORK.merge(parameters).encode(x).mean, half.merge(parameters).encode(x).mean
    assert cast_kernels.dtype == jnp.float32
    error = float(jnp.abs(exact - cast_kernels).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.05  # not zero: it did compute in bfloat16


def test_wrong_shapes_are_refused_with_what_is_allowed(parameters) -> None:
    model = NETWORK.merge(parameters)
    with pytest.raises(ValueError, match=r"\(1, 17, 16, 3\).*multiples of 2"):
        model.encode(jnp.zeros((1, 17, 16, 3)))
    with pytest.raises(ValueError, match="channels must be 3"):
        model.encode(jnp.zeros((1, 16, 16, 4)))
    with pytest.raises(ValueError, match="channels must be 4"):
        model.decode(jnp.zeros((1, 4, 4, 3)))


def test_loss_is_its_terms_weighted(parameters, images) -> None:
    def loss(kl_weight: float, edge_weight: float) -> tuple[float, dict[str, float]]:
        model = NETWORK.merge(parameters)
        total, terms = autoencoder_loss(model, images, jax.random.key(1), kl_weight=kl_weight, edge_weight=edge_weight)
        return float(total), {name: float(a / b) for name, (a, b) in terms.items()}

    total, mean = loss(0.3, 2.0)
    edge = (mean["edge_1"] + mean["edge_2"] + mean["edge_4"]) / 3
    assert total == pytest.approx(mean["l1"] + 2.0 * edge + 0.3 * mean["kl"], rel=1e-5)
    assert loss(0.0, 0.0)[0] == pytest.approx(mean["l1"], rel=1e-5)
    posterior = NETWORK.merge(parameters).encode(normalise(images))
    error = NETWORK.merge(parameters).decode(posterior.sample(jax.random.key(1))) - normalise(images)
    assert mean["l1"] == pytest.approx(float(np.abs(error).mean()), rel=1e-5)
    coarse = np.asarray(error).reshape(8, 8, 2, 8, 2, 3).mean((2, 4))
    steps = np.concatenate([np.abs(np.diff(coarse, axis=a)).ravel() for a in (1, 2)])
    assert mean["edge_2"] == pytest.approx(float(steps.mean()), rel=1e-4)


def test_training_halves_the_error_and_reaches_every_parameter(parameters, images) -> None:
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(parameters, moments, key):
        def loss(p):
            return autoencoder_loss(NETWORK.merge(p), images, key, kl_weight=1e-6, edge_weight=1.0)

        (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(parameters, updates), moments, terms["l1"][0] / terms["l1"][1]

    trained, moments, errors = parameters, optimizer.init(parameters), []
    for i in range(60):
        trained, moments, error = step(trained, moments, jax.random.key(i))
        errors.append(float(error))
    assert errors[-1] < 0.5 * errors[0]
    # A key's bias adds the same number to every score, which softmax ignores: the one exception.
    still = {name for name in trained if not np.abs(trained[name] - parameters[name]).max() > 1e-3}
    assert still <= {f"{part}.mid_block.attentions.0.to_k.bias" for part in ("encoder", "decoder")}


def test_latent_statistics_give_latents_of_mean_zero_and_deviation_one(parameters, images) -> None:
    shift, scale = latent_statistics(NETWORK.merge(parameters), images)
    config = dataclasses.replace(CONFIG, shift_factor=shift, scaling_factor=scale)
    latents = Functional(lambda rngs: AutoencoderKL(config, rngs=rngs)).merge(parameters).to_latents(normalise(images))
    assert float(latents.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-4)
    silent = {f"encoder.conv_out.{part}" for part in ("kernel", "bias")}
    constant = {name: jnp.zeros_like(value) if name in silent else value for name, value in parameters.items()}
    with pytest.raises(ValueError, match="standard deviation is 0"):
        latent_statistics(NETWORK.merge(constant), images)
