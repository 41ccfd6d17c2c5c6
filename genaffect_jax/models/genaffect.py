"""Gen-AFFECT's denoiser: the denoiser with its two token makers (arXiv 2508.09461)."""

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
from genaffect_jax.models.mmdit.model import Conditions, Left, MMDiT

# Below this noise level the division that turns clean latents into a velocity would only amplify errors (Li & He 2025,
# "Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720, clip at the same value).
SMALLEST_SIGMA = 0.05


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BranchScales:
    """Run-time weights of the identity and the expression branch; arrays of a program, so changing them never compiles.

    A scale acts at the noise levels of its interval, both ends included; elsewhere it is 1, as in training.
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
        """Scales of a model of so many layers, from one number for all layers or one for each.

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
    """Velocity of the images of a set, given who the person is and what each face does.

    With `config.prediction` "x0" the denoiser's output is read as the clean latents x, and the velocity is
    `(latents - x) / sigma`: a narrow network then need not carry the noise through to its output.

    `conditions` runs once per set, the call once per denoising step. The autoencoder is a network of its own.

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
        self.mmdit = MMDiT(config.mmdit, branches=True, rngs=rngs, dtype=dtype, max_free=max_free)
        self.identity_tokens = IdentityProjector(config.mmdit, config.conditioning, rngs=rngs, dtype=dtype)
        self.expression_tokens = ExpressionProjector(config.mmdit.width, config.conditioning, rngs=rngs, dtype=dtype)

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
        """All that stays constant while a set is denoised.

        Args:
            reference: latents of R reference images of each person, shared by the group's expressions.
            reference_mask: False where a reference is padding; a group without any has no identity (as if dropped).
            expression: expression vector of each image.
            drop_identity: groups that get the learned null identity token.
            drop_expression: images that get the learned null expression tokens.
            embedding: face embeddings of the references, for models with `conditioning.identity_embedding`.
            text, pooled: text embeddings, for models without register tokens.

        Raises:
            ValueError: embedding, text or pooled is missing, or given to a model that takes none; references larger
                than the position table.
        """
        patch = self.mmdit.config.patch_size
        positions = self.mmdit.positions(reference.shape[2] // patch, reference.shape[3] // patch)
        identity_tokens, identity_mask = self.identity_tokens(
            reference, reference_mask, positions, drop_identity, embedding=embedding
        )
        return self.mmdit.project_conditions(
            text=text,
            pooled=pooled,
            identity_tokens=identity_tokens,
            identity_mask=identity_mask,
            expression_tokens=self.expression_tokens(expression, drop_expression),
        )

    def __call__(
        self,
        latents: Float[Array, "G E h w c"],
        timestep: Float[Array, "G E"],
        conditions: Conditions,
        identity_scale: Float[Array, "*layers"] | float = 1.0,
        expression_scale: Float[Array, "*layers"] | float = 1.0,
    ) -> Float[Array, "G E h w c"]:
        """Velocity (float32) of noisy latents; `timestep` is sigma in [0, 1], scaled to 0..1000 inside.

        `identity_scale` and `expression_scale` weigh the two branches: one number, or one per layer; traced values.
        """
        return self.consistent(latents, timestep, conditions, identity_scale, expression_scale, None)[0]

    def consistent(
        self,
        latents: Float[Array, "G E h w c"],
        timestep: Float[Array, "G E"],
        conditions: Conditions,
        identity_scale: Float[Array, "*layers"] | float,
        expression_scale: Float[Array, "*layers"] | float,
        sharing: Sharing | None,
        block_cache: BlockCache | None = None,
    ) -> tuple[Float[Array, "G E h w c"], Left]:
        """The same for images that share tokens or reuse features, and what is left for others (see `MMDiT`)."""
        predicted, left = self.mmdit.consistent(
            latents, timestep, conditions, identity_scale, expression_scale, sharing, block_cache
        )
        if self.prediction == "velocity":
            return predicted, left
        # Velocity noise - clean, with the noise that leads from the predicted clean latents to the given ones.
        sigma = jnp.maximum(timestep, SMALLEST_SIGMA)[..., None, None, None]
        return (latents.astype(jnp.float32) - predicted) / sigma, left
