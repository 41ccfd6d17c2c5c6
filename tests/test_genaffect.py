"""The generator's two readings of the denoiser's output."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.diffusion.sampler import euler_sample
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import SMALLEST_SIGMA, GenAffect


@pytest.fixture(scope="module")
def generators(tiny_model):
    """Both kinds with the same parameters, their output layer no longer zero."""
    made = {}
    for prediction in ("velocity", "clean"):
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
    conditions = model.conditions(reference, jnp.ones((2, 1), bool), expression)
    return model(latents, jnp.full(latents.shape[:2], sigma), conditions)


@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.01])
def test_a_clean_prediction_becomes_the_velocity_that_leads_to_it(generators, sigma):
    latents = inputs()[1]
    clean = run(generators["velocity"], latents, sigma)  # the same numbers, read as they are
    velocity = run(generators["clean"], latents, sigma)
    np.testing.assert_allclose(velocity, (latents - clean) / max(sigma, SMALLEST_SIGMA), rtol=1e-4, atol=1e-4)


def test_one_euler_step_from_any_noise_level_ends_at_the_clean_prediction(generators):
    latents = inputs()[1]
    clean = run(generators["velocity"], latents, 0.6)
    drawn = euler_sample(lambda x, s: run(generators["clean"], x, s), latents, jnp.array([0.6, 0.0]))
    np.testing.assert_allclose(drawn, clean, atol=1e-4)
