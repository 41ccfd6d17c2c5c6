"""Auxiliary losses on the predicted clean image: does it show the person, does it show the expression?

At low noise the predicted clean latents, decoded, are a face that frozen encoders can read. Gradients pass through the
encoders and through the frozen autoencoder's decoder to the denoiser. Judging identity on the prediction follows
PortraitBooth (Peng et al. 2023, arXiv 2312.06354) and PuLID (Guo et al. 2024, arXiv 2404.16022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import AuxiliaryConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, load_conditioning_encoder
from genaffect_jax.training.step import Terms

IDENTITY_TERM, EXPRESSION_TERM = "auxiliary/identity_distance", "auxiliary/expression_distance"
TERMS = (IDENTITY_TERM, EXPRESSION_TERM)
"""Terms of the loss that may count no example in a step: their mean is then 0 / 0."""


@dataclass(frozen=True)
class AuxiliaryLosses:
    """The auxiliary losses with weights above 0; made by `load_auxiliary`."""

    config: AuxiliaryConfig
    """Weights, and the noise level up to which examples count."""
    identity: AvatarEncoder | None
    """Identity encoder; None without identity loss."""
    expression: AvatarEncoder | None
    """Expression encoder; None without expression loss."""

    def frozen_components(self) -> dict[str, Any]:
        """Parameters of the encoders, which the denoiser's loss reads as `frozen_components["auxiliary"]`."""
        encoders = {"identity": self.identity, "expression": self.expression}
        return {name: encoder.parameters for name, encoder in encoders.items() if encoder is not None}

    def terms(
        self,
        autoencoder: AutoencoderKL,
        frozen_components: Mapping[str, Any],
        clean: Float[Array, "G E h w c"],
        sigma: Float[Array, "G E"],
        reference: Array,
        expression: Float[Array, "G E W"],
        drop_identity: Bool[Array, " G"],
        drop_expression: Bool[Array, "G E"],
    ) -> Terms:
        """Distances of the decoded prediction, as (sum, count) over the examples that count.

        An example counts if its sigma is at most `config.largest_sigma` and the condition in question was not dropped.
        The identity distance is 1 - cosine of the embeddings of prediction and reference, the mean over references; the
        expression distance is the mean absolute difference of expression vectors.

        Args:
            autoencoder: the frozen autoencoder.
            frozen_components: parameters of the encoders, from `frozen_components()`.
            clean: predicted clean latents.
            sigma: noise level of each example.
            reference: reference images [G, R, S, S, 3] (uint8) or their latents [G, R, h, w, c].
            expression: wanted expression vectors.
            drop_identity: sets whose identity was dropped.
            drop_expression: examples whose expression was dropped.
        """
        predicted = autoencoder.decode(autoencoder.unscaled(clean))
        near = sigma <= self.config.largest_sigma
        terms: Terms = {}
        if self.identity is not None:
            encode = self.identity.network.merge(frozen_components["identity"])
            shown = (
                normalise(reference)
                if reference.dtype == jnp.uint8
                else autoencoder.decode(autoencoder.unscaled(reference.astype(jnp.float32)))
            )
            cosine = jnp.einsum("gew,grw->ger", encode(predicted), encode(shown)).mean(-1)
            terms[IDENTITY_TERM] = _masked(1.0 - cosine, near & ~drop_identity[:, None])
        if self.expression is not None:
            encode = self.expression.network.merge(frozen_components["expression"])
            distance = jnp.abs(encode(predicted) - expression).mean(-1)
            terms[EXPRESSION_TERM] = _masked(distance, near & ~drop_expression)
        return terms

    def add(self, loss: tuple[Array, Array], terms: Terms) -> tuple[Array, Array]:
        """The loss (sum, count) with the weighted means of `terms` added to its mean; an empty term adds nothing."""
        weights = {IDENTITY_TERM: self.config.identity_weight, EXPRESSION_TERM: self.config.expression_weight}
        total, count = loss
        for name, (distance, examples) in terms.items():
            total += count * weights[name] * distance / jnp.maximum(examples, 1.0)
        return total, count


def load_auxiliary(config: AuxiliaryConfig, expression_width: int) -> AuxiliaryLosses | None:
    """The auxiliary losses of a configuration, with their encoders; None if both weights are 0, and no file is read.

    Args:
        config: weights, and weight files of the encoders.
        expression_width: width W of the denoiser's expression vectors.

    Raises:
        WeightsError: a weight file is missing or damaged, or holds the other kind of encoder.
        ConfigError: an encoder is an evaluator, or its vectors have another width.
    """
    if not config.identity_weight and not config.expression_weight:
        return None
    identity = expression = None
    if config.identity_weight:
        identity = load_conditioning_encoder(config.identity_encoder, "identity")
    if config.expression_weight:
        expression = load_conditioning_encoder(config.expression_encoder, "expression")
        if expression.width != expression_width:
            raise ConfigError(
                f"auxiliary.expression_encoder={config.expression_encoder}: gives {expression.width} numbers, "
                f"conditioning.expression_width is {expression_width}"
            )
    return AuxiliaryLosses(config, identity, expression)


def _masked(values: Float[Array, "G E"], mask: Bool[Array, "G E"]) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32))
