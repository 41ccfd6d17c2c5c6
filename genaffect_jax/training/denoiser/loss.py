"""The denoiser's loss: rectified flow on the targets of a set, given its reference and the expressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.mmdit.consistent_attention import Sharing, random_tokens
from genaffect_jax.training.denoiser.auxiliary import AuxiliaryLosses
from genaffect_jax.training.denoiser.batch import batch_conditions, to_latents
from genaffect_jax.training.step import Batch, LossFunction, Terms

# Folded into the key of the first set, so that what a step shares has no key in common with a set's own draws.
_SHARING = 0x73686172

Draws = tuple[Float[Array, "G E"], Float[Array, "G E h w c"], list[Bool[Array, "..."]]]


def make_denoiser_loss(
    config: FlowConfig, autoencoder: Functional[AutoencoderKL], auxiliary: AuxiliaryLosses | None = None
) -> LossFunction:
    """Builds the loss `(model, frozen_components, batch, keys) -> Terms` of a `GenAffect` model.

    The terms are `loss`, with `config.change_weight` and the auxiliary losses, `flow_loss` without both, and the
    distances of the auxiliary losses. The random numbers of a set depend on its own key alone; which tokens the images
    of every set share (`config.consistency`) depends on the key of the first set.

    Args:
        config: noise levels, dropout of the conditions, weights.
        autoencoder: encodes images of a batch that holds no latents.
        auxiliary: losses on the predicted image; None adds none.

    The batch is that of `training.denoiser.batch`. `frozen_components` holds `autoencoder`, its parameters, if the
    batch holds images or there are auxiliary losses; `prompts`, a `models.prompts.Prompts`, for models that read
    prompts; and `auxiliary`, the encoders of `AuxiliaryLosses.frozen_components`, with auxiliary losses.
    """

    def loss(model: GenAffect, frozen_components: Mapping[str, Any], batch: Batch, keys: Key[Array, " G"]) -> Terms:
        reference = to_latents(autoencoder, frozen_components, batch["reference"])
        target = to_latents(autoencoder, frozen_components, batch["target"])
        sigma, noise, (drop_identity, drop_expression, drop_text) = _draws(config, target, keys)
        conditions = batch_conditions(
            model, frozen_components, batch, reference, drop_identity, drop_expression, drop_text
        )
        noisy = flow.interpolate(target, noise, sigma)
        velocity = model(noisy, sigma, conditions, sharing=step_sharing(config, model, keys, target)).prediction
        weight = flow.change_weight(target, reference[:, 0], config.change_weight)
        true_velocity = flow.velocity_target(target, noise)
        terms = {
            "loss": flow.flow_loss(velocity, true_velocity, weight),
            "flow_loss": flow.flow_loss(velocity, true_velocity),
        }
        if auxiliary is not None:
            distances = auxiliary.terms(
                autoencoder.merge(frozen_components["autoencoder"]),
                frozen_components["auxiliary"],
                flow.predicted_x0(noisy, velocity, sigma),
                sigma,
                batch["reference"],
                batch["expression"],
                drop_identity,
                drop_expression,
            )
            terms = {**terms, "loss": auxiliary.add(terms["loss"], distances), **distances}
        return terms

    return loss


def _draws(config: FlowConfig, target: Float[Array, "G E h w c"], keys: Key[Array, " G"]) -> Draws:
    """Noise levels, noise, and the dropped conditions (identity [G], expression and text [G, E]) of every set."""

    def of_set(key: Key[Array, ""]) -> Any:
        sigma_key, noise_key, drop_key = jax.random.split(key, 3)
        expressions, *latents = target.shape[1:]
        levels = 1 if config.consistency else expressions  # images that share are sampled at one noise level
        return (
            jnp.broadcast_to(flow.sample_sigma(sigma_key, (levels,), config), (expressions,)),
            jax.random.normal(noise_key, (expressions, *latents)),
            [x[0] for x in flow.sample_drops(drop_key, 1, expressions, config)],
        )

    return jax.vmap(of_set)(keys)


def step_sharing(
    config: FlowConfig, model: GenAffect, keys: Key[Array, " G"], target: Float[Array, "G E h w c"]
) -> Sharing | None:
    """What the targets of every set share in this step: None without consistent attention."""
    if not config.consistency:
        return None
    network = model.mmdit.config
    tokens_key, drop_key = jax.random.split(jax.random.fold_in(keys[0], _SHARING))
    shared = round(config.consistency * network.image_tokens)
    tokens = random_tokens(tokens_key, network.num_layers, network.image_tokens, shared)
    active = jax.random.bernoulli(drop_key, 1.0 - config.drop_consistency)
    return Sharing(tokens, jnp.broadcast_to(active, network.num_layers), anchors=target.shape[1], copied=True)
