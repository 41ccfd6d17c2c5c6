"""The denoiser of Gen-AFFECT (arXiv 2508.09461): the transformer with the projectors of its two conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import ModelConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.mmdit.block_cache import BlockCache
from genaffect_jax.models.mmdit.condition_projectors import ExpressionProjector, IdentityProjector
from genaffect_jax.models.mmdit.consistent_attention import Sharing
from genaffect_jax.models.mmdit.model import Conditions, MMDiT, MMDiTOutput, Scale

# The division that turns clean latents into a velocity would only amplify errors below this noise level. Li & He 2025,
# "Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720, clip at the same value.
SMALLEST_SIGMA = 0.05


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BranchScales:
    """Run-time weights of the identity and the expression branch.

    They are arguments of a program, so that changing them never compiles. A scale acts at the noise levels of its
    interval, both ends included; elsewhere the weight is 1, as in training.
    """

    identity: Float[Array, " layers"]
    """Weight of the identity branch in every layer."""
    expression: Float[Array, " layers"]
    """Weight of the expression branch in every layer."""
    identity_interval: Float[Array, " 2"]
    """Lowest and highest sigma at which `identity` acts."""
    expression_interval: Float[Array, " 2"]
    """Lowest and highest sigma at which `expression` acts."""

    @classmethod
    def of(
        cls,
        layers: int,
        identity_scale: float | Sequence[float] = 1.0,
        expression_scale: float | Sequence[float] = 1.0,
        identity_interval: Sequence[float] = (0.0, 1.0),
        expression_interval: Sequence[float] = (0.0, 1.0),
    ) -> BranchScales:
        """Scales of a model with `layers` layers, each from one number for all layers or one number per layer.

        Raises:
            ConfigError: a scale is negative or not finite, there is not one per layer, or an interval is no part of
                [0, 1].
        """
        scales = []
        for name, given in (("identity_scale", identity_scale), ("expression_scale", expression_scale)):
            scale = np.atleast_1d(np.asarray(given, np.float32))
            if scale.shape not in ((1,), (layers,)):
                raise ConfigError(f"{scale.size} numbers, must be one, or one for each of {layers} layers", field=name)
            if not (np.isfinite(scale).all() and (scale >= 0).all()):
                raise ConfigError("must be finite and at least 0", field=name, found=given)
            scales.append(np.broadcast_to(scale, (layers,)))
        for name, interval in (
            ("identity_interval", identity_interval),
            ("expression_interval", expression_interval),
        ):
            if len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0:
                raise ConfigError("must be two noise levels, 0 <= low <= high <= 1", field=name, found=interval)
            scales.append(np.asarray(interval, np.float32))
        return cls(*(jnp.asarray(x) for x in scales))

    def at(self, sigma: Float[Array, ""]) -> tuple[Float[Array, " layers"], Float[Array, " layers"]]:
        """Identity and expression scale of every layer at a noise level."""

        def within(scale: Array, interval: Array) -> Array:
            return jnp.where((sigma >= interval[0]) & (sigma <= interval[1]), scale, 1.0)

        return within(self.identity, self.identity_interval), within(self.expression, self.expression_interval)


class GenAffect(nnx.Module):
    """The velocity of the images of a set, given reference images of the person and the expression of each image.

    `encode_conditions` runs once per set, the call once per denoising step. The autoencoder is a network of its own.

    With `config.prediction` "x0" the transformer predicts the clean latents x, and the velocity is
    `(latents - x) / sigma`. A narrow network then need not carry the noise through to its output.

    Args:
        config: sizes.
        rngs: source of the initial values.
        dtype: compute type (float32 or bfloat16); parameters are float32.
        max_free: see `MMDiT`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        max_free: bool = False,
    ) -> None:
        self.prediction = config.prediction
        branches = config.conditioning.attention
        self.mmdit = MMDiT(config.mmdit, branches=branches, rngs=rngs, dtype=dtype, max_free=max_free)
        self.identity_projector = IdentityProjector(config.mmdit, config.conditioning, rngs=rngs, dtype=dtype)
        self.expression_projector = ExpressionProjector(config.mmdit.width, config.conditioning, rngs=rngs, dtype=dtype)

    def encode_conditions(
        self,
        reference: Float[Array, "G R h w c"],
        reference_mask: Bool[Array, "G R"],
        expression: Float[Array, "G E W"],
        drop_identity: Bool[Array, " G"] | None = None,
        drop_expression: Bool[Array, "G E"] | None = None,
        *,
        embedding: Float[Array, "G R F"] | None = None,
        text: Float[Array, "G E T C"] | None = None,
        pooled: Float[Array, "G E P"] | None = None,
    ) -> Conditions:
        """Everything that stays constant while a set is denoised.

        Args:
            reference: latents of R reference images of each person, shared by the images of the group.
            reference_mask: False where a reference is padding. A group without references gets the null token.
            expression: expression vector of each image.
            drop_identity: True for groups that get the learned null identity token.
            drop_expression: True for images that get the learned null expression tokens.
            embedding: face embeddings of the references, for models with `conditioning.identity_embedding`.
            text, pooled: text embeddings, for models without register tokens.

        Raises:
            ValueError: embedding, text or pooled is missing, or given to a model that takes none; references larger
                than the position table.
        """
        patch = self.mmdit.config.patch_size
        positions = self.mmdit.positions(reference.shape[2] // patch, reference.shape[3] // patch)
        identity_tokens, identity_mask = self.identity_projector(
            reference, reference_mask, positions, drop_identity, embedding=embedding
        )
        return self.mmdit.project_conditions(
            text=text,
            pooled=pooled,
            identity_tokens=identity_tokens,
            identity_mask=identity_mask,
            expression_tokens=self.expression_projector(expression, drop_expression),
        )

    def __call__(
        self,
        latents: Float[Array, "G E h w c"],
        timestep: Float[Array, "G E"],
        conditions: Conditions,
        *,
        identity_scale: Scale = 1.0,
        expression_scale: Scale = 1.0,
        sharing: Sharing | None = None,
        block_cache: BlockCache | None = None,
    ) -> MMDiTOutput:
        """One evaluation, as `MMDiT.__call__`, except that `prediction` is always the velocity."""
        output = self.mmdit(
            latents,
            timestep,
            conditions,
            identity_scale=identity_scale,
            expression_scale=expression_scale,
            sharing=sharing,
            block_cache=block_cache,
        )
        if self.prediction == "velocity":
            return output
        # Velocity noise - clean, with the noise that leads from the predicted clean latents to the given ones.
        sigma = jnp.maximum(timestep, SMALLEST_SIGMA)[..., None, None, None]
        return output._replace(prediction=(latents.astype(jnp.float32) - output.prediction) / sigma)
