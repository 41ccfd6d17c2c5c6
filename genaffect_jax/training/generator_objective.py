"""The generator's objective: rectified flow on the targets of a set, given its reference and the expressions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.models.autoencoder import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.training.step import Batch, Terms


def make_generator_loss(
    config: FlowConfig, autoencoder: Functional[AutoencoderKL]
) -> Callable[[GenAffect, Parameters, Batch, jax.Array], Terms]:
    """Builds the loss `(model, frozen, batch, key) -> Terms`.

    The batch holds `reference` [G, R, ...], `target` [G, E, ...] and `expression` [G, E, W]. Pictures are uint8
    [S, S, 3] and are encoded here by the frozen autoencoder; cached latents are floating point [h, w, c].
    """

    def latents(pictures: jax.Array, frozen: Parameters) -> jax.Array:
        if pictures.dtype == jnp.uint8:
            return autoencoder.merge(frozen).to_latents(normalise(pictures))
        return pictures.astype(jnp.float32)

    def loss(model: GenAffect, frozen: Parameters, batch: Batch, key: jax.Array) -> Terms:
        reference = latents(batch["reference"], frozen)
        target = latents(batch["target"], frozen)
        groups, references = reference.shape[:2]
        expressions = target.shape[1]
        sigma_key, noise_key, drop_key = jax.random.split(key, 3)
        drop_identity, drop_expression = flow.sample_drops(drop_key, groups, expressions, config)
        conditions = model.conditions(
            reference,
            jnp.ones((groups, references), bool),
            batch["expression"],
            drop_identity=drop_identity,
            drop_expression=drop_expression,
        )
        sigma = flow.sample_sigma(sigma_key, (groups, expressions), config)
        noise = jax.random.normal(noise_key, target.shape)
        velocity = model(flow.interpolate(target, noise, sigma), sigma, conditions)
        weight = flow.change_weight(target, reference[:, 0], config.change_weight)
        true_velocity = flow.velocity_target(target, noise)
        return {
            "loss": flow.flow_loss(velocity, true_velocity, weight),
            "flow_loss": flow.flow_loss(velocity, true_velocity),
        }

    return loss
