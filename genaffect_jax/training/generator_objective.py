"""The generator's objective: rectified flow on the targets of a set, given its reference and the expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.models.autoencoder import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.training.step import Batch, Terms


def make_generator_loss(
    config: FlowConfig, autoencoder: Functional[AutoencoderKL]
) -> Callable[[GenAffect, Mapping[str, Any], Batch, jax.Array], Terms]:
    """Builds the loss `(model, frozen, batch, key) -> Terms`.

    The batch holds `reference` [G, R, ...], `target` [G, E, ...] and `expression` [G, E, W]. Pictures are uint8
    [S, S, 3] and are encoded here with `frozen["autoencoder"]`, its parameters; cached latents are floating point
    [h, w, c]. For models with a text stream `frozen["prompts"]` holds `models.prompts.Prompts`, and the batch
    `prompt` [G, E], their rows.
    """

    def latents(pictures: jax.Array, frozen: Mapping[str, Any]) -> jax.Array:
        if pictures.dtype == jnp.uint8:
            return autoencoder.merge(frozen["autoencoder"]).to_latents(normalise(pictures))
        return pictures.astype(jnp.float32)

    def loss(model: GenAffect, frozen: Mapping[str, Any], batch: Batch, key: jax.Array) -> Terms:
        reference = latents(batch["reference"], frozen)
        target = latents(batch["target"], frozen)
        groups, references = reference.shape[:2]
        expressions = target.shape[1]
        sigma_key, noise_key, drop_key = jax.random.split(key, 3)
        drop_identity, drop_expression, drop_text = flow.sample_drops(drop_key, groups, expressions, config)
        text = pooled = None
        if "prompts" in frozen:
            text, pooled = frozen["prompts"].lookup(batch["prompt"], drop_text)
        conditions = model.conditions(
            reference,
            jnp.ones((groups, references), bool),
            batch["expression"],
            drop_identity=drop_identity,
            drop_expression=drop_expression,
            text=text,
            pooled=pooled,
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
