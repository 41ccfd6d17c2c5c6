"""The denoiser's objective: rectified flow on the targets of a set, given its reference and the expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.mmdit.model import Conditions
from genaffect_jax.training.denoiser.auxiliary import AuxiliaryLosses
from genaffect_jax.training.step import Batch, Terms


def make_denoiser_loss(
    config: FlowConfig, autoencoder: Functional[AutoencoderKL], auxiliary: AuxiliaryLosses | None = None
) -> Callable[[GenAffect, Mapping[str, Any], Batch, Key[Array, " G"]], Terms]:
    """Builds the loss `(model, frozen_components, batch, keys) -> Terms`; what each set draws depends on its own key
    alone.

    The batch holds `reference` [G, R, ...], `target` [G, E, ...] and `expression` [G, E, W]. Images are uint8 [S, S, 3]
    and are encoded here with `frozen_components["autoencoder"]`, its parameters; cached latents are floating point [h,
    w, c]. For models with face embeddings the batch holds `embedding` [G, R, F], those of the references; for models
    with a text stream `frozen_components["prompts"]` holds `models.prompts.Prompts`, and the batch `prompt` [G, E],
    their rows. With `auxiliary` its terms are added to the loss and logged beside it; `frozen_components["auxiliary"]`
    holds what `auxiliary.frozen_components()` gave.
    """

    def loss(model: GenAffect, frozen_components: Mapping[str, Any], batch: Batch, keys: Key[Array, " G"]) -> Terms:
        reference = to_latents(autoencoder, frozen_components, batch["reference"])
        target = to_latents(autoencoder, frozen_components, batch["target"])

        def draw(key: Key[Array, ""]) -> Any:
            sigma_key, noise_key, drop_key = jax.random.split(key, 3)
            expressions, *latents = target.shape[1:]
            return (
                flow.sample_sigma(sigma_key, (expressions,), config),
                jax.random.normal(noise_key, (expressions, *latents)),
                [x[0] for x in flow.sample_drops(drop_key, 1, expressions, config)],
            )

        sigma, noise, (drop_identity, drop_expression, drop_text) = jax.vmap(draw)(keys)
        conditions = batch_conditions(
            model, frozen_components, batch, reference, drop_identity, drop_expression, drop_text
        )
        noisy = flow.interpolate(target, noise, sigma)
        velocity = model(noisy, sigma, conditions).prediction
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


def to_latents(autoencoder: Functional[AutoencoderKL], frozen_components: Mapping[str, Any], images: Array) -> Array:
    """Latents (float32) of uint8 images [..., S, S, 3]; what is floating point is latents already."""
    if images.dtype == jnp.uint8:
        return autoencoder.merge(frozen_components["autoencoder"]).to_latents(normalise(images))
    return images.astype(jnp.float32)


def batch_conditions(
    model: GenAffect,
    frozen_components: Mapping[str, Any],
    batch: Batch,
    reference: Float[Array, "G R h w c"],
    drop_identity: Bool[Array, " G"] | None = None,
    drop_expression: Bool[Array, "G E"] | None = None,
    drop_text: Bool[Array, "G E"] | None = None,
) -> Conditions:
    """The conditions of a batch, whose references' latents are given; see `GenAffect.encode_conditions`."""
    text = pooled = None
    if "prompts" in frozen_components:
        text, pooled = frozen_components["prompts"].lookup(batch["prompt"], drop_text)
    return model.encode_conditions(
        reference,
        jnp.ones(reference.shape[:2], bool),
        batch["expression"],
        drop_identity=drop_identity,
        drop_expression=drop_expression,
        embedding=batch.get("embedding"),
        text=text,
        pooled=pooled,
    )
