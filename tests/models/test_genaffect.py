"""The two readings of the denoiser's prediction, the scales of its condition branches, and the forms of these."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import ConditioningConfig
from genaffect_jax.diffusion.sampler import sample
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import SMALLEST_SIGMA, BranchScales, GenAffect


@pytest.fixture(scope="module")
def generators(tiny_model):
    """Both kinds with the same parameters, their output layer no longer zero."""
    made = {}
    for prediction in ("velocity", "x0"):
        config = dataclasses.replace(tiny_model, prediction=prediction)
        network = Functional(lambda rngs, config=config: GenAffect(config, rngs=rngs))
        parameters = network.init(jax.random.key(0))
        parameters["mmdit.out.kernel"] = jax.random.normal(jax.random.key(1), parameters["mmdit.out.kernel"].shape)
        made[prediction] = network.merge(parameters)
    return made


def inputs():
    keys = jax.random.split(jax.random.key(2), 3)
    reference, latents = jax.random.normal(keys[0], (2, 1, 8, 8, 4)), jax.random.normal(keys[1], (2, 3, 8, 8, 4))
    return reference, latents, jax.random.uniform(keys[2], (2, 3, 40))


def run(model, latents, sigma):
    reference, _, expression = inputs()
    conditions = model.encode_conditions(reference, jnp.ones((2, 1), bool), expression)
    return model(latents, jnp.full(latents.shape[:2], sigma), conditions).prediction


@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.01])
def test_an_x0_prediction_becomes_the_velocity_that_leads_to_it(generators, sigma):
    latents = inputs()[1]
    clean = run(generators["velocity"], latents, sigma)  # the same numbers, read as they are
    velocity = run(generators["x0"], latents, sigma)
    np.testing.assert_allclose(velocity, (latents - clean) / max(sigma, SMALLEST_SIGMA), rtol=1e-4, atol=1e-4)


def test_one_euler_step_from_any_noise_level_ends_at_the_x0_prediction(generators):
    latents = inputs()[1]
    clean = run(generators["velocity"], latents, 0.6)
    drawn, _ = sample(lambda x, s, *_: (run(generators["x0"], x, s), None), latents, jnp.array([0.6, 0.0]), 1)
    np.testing.assert_allclose(drawn, clean, atol=1e-4)


def test_a_scale_acts_within_its_interval_ends_included_and_is_one_elsewhere():
    scales = BranchScales.of(3, 0.5, (0.0, 1.5, 2.0), (0.25, 0.75), (0.5, 1.0))
    for sigma, identity, expression in (
        (0.2, [1, 1, 1], [1, 1, 1]),
        (0.25, [0.5, 0.5, 0.5], [1, 1, 1]),
        (0.5, [0.5, 0.5, 0.5], [0, 1.5, 2]),
        (1.0, [1, 1, 1], [0, 1.5, 2]),
    ):
        found = scales.at(jnp.float32(sigma))
        np.testing.assert_array_equal(found[0], identity)
        np.testing.assert_array_equal(found[1], expression)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"identity_scale": -0.1}, "identity_scale=-0.1: must be finite and at least 0"),
        ({"expression_scale": float("nan")}, "expression_scale=nan"),
        ({"expression_scale": (1.0, 2.0)}, "expression_scale: 2 numbers, must be one, or one for each of 3 layers"),
        ({"identity_interval": (0.6, 0.4)}, r"identity_interval=\(0.6, 0.4\): must be two noise levels"),
        ({"expression_interval": (0.0, 1.5)}, r"expression_interval=\(0.0, 1.5\): must be two noise levels"),
    ],
)
def test_scales_that_are_not_allowed_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        BranchScales.of(3, **given)


@pytest.mark.parametrize(
    ("conditioning", "encoders", "message"),
    [
        ({"identity_embedding": 8}, {}, r"conditioning.identity_embedding=8: must be .* 0 without one"),
        ({}, {"identity_encoder": "x.safetensors"}, "conditioning.identity_embedding=0: must be the encoder's width"),
        ({"expression_space": "encoder"}, {}, "needs model.expression_encoder"),
    ],
)
def test_encoders_and_widths_come_together(tiny_model, conditioning, encoders, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_model, conditioning=ConditioningConfig(**conditioning), **encoders)
    with pytest.raises(ConfigError, match="at least 1 with identity_tokens"):
        ConditioningConfig(identity_tokens=4, identity_layers=0)


def of_form(tiny_model, attention):
    """A denoiser whose conditions enter by `attention`, no parameter of it zero."""
    conditioning = dataclasses.replace(tiny_model.conditioning, attention=attention)
    config = dataclasses.replace(tiny_model, conditioning=conditioning)
    network = Functional(lambda rngs: GenAffect(config, rngs=rngs))
    parameters = network.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(parameters))
    shaken = {
        name: array + 0.2 * jax.random.normal(key, array.shape)
        for key, (name, array) in zip(keys, sorted(parameters.items()), strict=True)
    }
    return network.merge(shaken), parameters


@pytest.mark.parametrize("attention", ["decoupled", "concatenated", "text"])
def test_in_every_form_each_image_follows_its_own_expression_and_the_person(tiny_model, attention):
    model, parameters = of_form(tiny_model, attention)
    own = [name for name in parameters if ".expression." in name]
    assert bool(own) == (attention == "decoupled")  # the other forms have no projections for expressions alone
    reference, latents, expression = inputs()
    sigma = jnp.full(latents.shape[:2], 0.5)

    def predict(reference, expression, **scales):
        conditions = model.encode_conditions(reference, jnp.ones((2, 1), bool), expression)
        return model(latents, sigma, conditions, **scales).prediction

    plain = predict(reference, expression)
    other_face = predict(reference, expression.at[0, 1].set(1.0 - expression[0, 1]))
    changed = np.abs(other_face - plain).max((2, 3, 4)) > 1e-4
    np.testing.assert_array_equal(changed, [[False, True, False], [False, False, False]])
    assert np.abs(predict(reference.at[1].mul(-1.0), expression) - plain)[1].min((1, 2, 3)).max() > 0


def test_a_new_model_of_any_form_adds_nothing_to_the_attention_of_its_base(tiny_model):
    for attention in ("decoupled", "concatenated"):
        conditioning = dataclasses.replace(tiny_model.conditioning, attention=attention)
        config = dataclasses.replace(tiny_model, conditioning=conditioning)
        network = Functional(lambda rngs, config=config: GenAffect(config, rngs=rngs))
        parameters = network.init(jax.random.key(0))
        parameters["mmdit.out.kernel"] = jax.random.normal(jax.random.key(1), parameters["mmdit.out.kernel"].shape)
        reference, latents, expression = inputs()
        found = []
        for given in (expression, 1.0 - expression):
            model = network.merge(parameters)
            conditions = model.encode_conditions(reference, jnp.ones((2, 1), bool), given)
            found.append(model(latents, jnp.full(latents.shape[:2], 0.5), conditions).prediction)
        np.testing.assert_array_equal(*found)
