"""Optional losses on the clean image that a prediction stands for: is it the person, does it show the expression?

At low noise the predicted clean latents, decoded, are a face that frozen encoders can read. Gradients pass through the
encoders and through the frozen autoencoder's decoder to the denoiser. The idea of judging identity on the prediction
is that of PortraitBooth (Peng et al. 2023, arXiv 2312.06354) and PuLID (Guo et al. 2024, arXiv 2404.16022).
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
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, load_expression_encoder, load_identity_encoder
from genaffect_jax.training.step import Terms

# Terms of this module begin so. No example may count in a step; such a term is then 0 / 0, which the log leaves out.
PREFIX = "auxiliary/"
IDENTITY_TERM, EXPRESSION_TERM = f"{PREFIX}identity_distance", f"{PREFIX}expression_distance"


@dataclass(frozen=True)
class AuxiliaryLosses:
    """The losses whose weights are above 0; make it with `load_auxiliary`."""

    config: AuxiliaryConfig
    """Weights and the noise level."""
    identity: AvatarEncoder | None
    """Reads who is shown; None without identity loss."""
    expression: AvatarEncoder | None
    """Reads what the face does; None without expression loss."""

    def frozen_components(self) -> dict[str, Any]:
        """The encoders' parameters: what the loss expects as `frozen_components["auxiliary"]`."""
        encoders = {"identity": self.identity, "expression": self.expression}
        return {name: encoder.parameters for name, encoder in encoders.items() if encoder is not None}

    def terms(
        self,
        images: AutoencoderKL,
        frozen_components: Mapping[str, Any],
        clean: Float[Array, "G E h w c"],
        sigma: Float[Array, "G E"],
        reference: Array,
        expression: Float[Array, "G E W"],
        drop_identity: Bool[Array, " G"],
        drop_expression: Bool[Array, "G E"],
    ) -> Terms:
        """Distances of the decoded prediction, as (sum, count) over the examples that count.

        An example counts if its sigma is at most `config.largest_sigma` and it had the condition in question.

        Args:
            images: the frozen autoencoder.
            frozen: parameters of the encoders, as `frozen_components()` gives them.
            clean: predicted clean latents.
            sigma: noise level of each.
            reference: reference images [G, R, S, S, 3] (uint8) or their latents [G, R, h, w, c].
            expression: wanted expression vectors.
            drop_identity, drop_expression: examples that did not get the condition.
        """
        drawn = images.decode(images.unscaled(clean))
        near = sigma <= self.config.largest_sigma
        terms: Terms = {}
        if self.identity is not None:
            encode = self.identity.network.merge(frozen_components["identity"])
            shown = (
                normalise(reference)
                if reference.dtype == jnp.uint8
                else images.decode(images.unscaled(reference.astype(jnp.float32)))
            )
            cosine = jnp.einsum("gew,grw->ger", encode(drawn), encode(shown)).mean(-1)
            terms[IDENTITY_TERM] = _masked(1.0 - cosine, near & ~drop_identity[:, None])
        if self.expression is not None:
            encode = self.expression.network.merge(frozen_components["expression"])
            distance = jnp.abs(encode(drawn) - expression).mean(-1)
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
    """The losses of a configuration with their encoders; None, and no file is read, if both weights are 0.

    Args:
        config: weights and weight files.
        expression_width: numbers in the denoiser's expression vectors.

    Raises:
        WeightsError: a weight file is missing or damaged, or holds the other kind of encoder.
        ConfigError: an encoder is an evaluator, or gives vectors of another width.
    """
    if not config.identity_weight and not config.expression_weight:
        return None
    identity = expression = None
    if config.identity_weight:
        identity = load_identity_encoder(config.identity_encoder)
        _refuse_evaluator("identity_encoder", config.identity_encoder, identity)
    if config.expression_weight:
        expression = load_expression_encoder(config.expression_encoder)
        _refuse_evaluator("expression_encoder", config.expression_encoder, expression)
        if expression.width != expression_width:
            raise ConfigError(
                f"auxiliary.expression_encoder={config.expression_encoder}: gives {expression.width} numbers, "
                f"conditioning.expression_width is {expression_width}"
            )
    return AuxiliaryLosses(config, identity, expression)


def _refuse_evaluator(field: str, source: str, encoder: AvatarEncoder) -> None:
    # By the name in the file's header, which a renamed or copied file keeps.
    if "evaluator" in encoder.name:
        raise ConfigError(
            f"auxiliary.{field}={source}: holds {encoder.name!r}; evaluators only measure, a denoiser that was "
            "trained on one could not be judged by it; use a conditioning encoder (package:identity_avatar, "
            "package:expression_avatar)"
        )


def _masked(values: Float[Array, "G E"], mask: Bool[Array, "G E"]) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32))
