"""Gen-AFFECT's generator: the denoiser with its two token makers (arXiv 2508.09461)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import ModelConfig
from genaffect_jax.models.conditioning import ExpressionTokens, IdentityTokens
from genaffect_jax.models.mmdit import Conditions, MMDiT

# Below this noise level the division that turns clean latents into a velocity would only amplify errors (Li & He 2025,
# "Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720, clip at the same value).
SMALLEST_SIGMA = 0.05


class GenAffect(nnx.Module):
    """Velocity of the pictures of a set, given who the person is and what each face does.

    With `config.prediction` "clean" the denoiser's output is read as the clean latents x, and the velocity is
    `(latents - x) / sigma`: a narrow network then need not carry the noise through to its output.

    `conditions` runs once per set, the call once per denoising step. The autoencoder is a network of its own.

    Args:
        config: sizes.
        rngs: source of the initial values.
        dtype: compute type (float32 or bfloat16); parameters are float32.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.prediction = config.prediction
        self.mmdit = MMDiT(config.mmdit, branches=True, rngs=rngs, dtype=dtype)
        self.identity_tokens = IdentityTokens(config.mmdit, config.conditioning, rngs=rngs, dtype=dtype)
        self.expression_tokens = ExpressionTokens(config.mmdit.width, config.conditioning, rngs=rngs, dtype=dtype)

    def conditions(
        self,
        reference: Float[Array, "G R h w c"],
        reference_mask: Bool[Array, "G R"],
        expression: Float[Array, "G E W"],
        drop_identity: Bool[Array, " G"] | None = None,
        drop_expression: Bool[Array, "G E"] | None = None,
        *,
        text: Float[Array, "G E T C"] | None = None,
        pooled: Float[Array, "G E P"] | None = None,
    ) -> Conditions:
        """All that stays constant while a set is denoised.

        Args:
            reference: latents of R reference pictures of each person, shared by the group's expressions.
            reference_mask: False where a reference is padding; a group without any has no identity (as if dropped).
            expression: expression vector of each picture.
            drop_identity: groups that get the learned null identity token.
            drop_expression: pictures that get the learned null expression tokens.
            text, pooled: text embeddings, for models without register tokens.

        Raises:
            ValueError: text or pooled is missing, or given to a model that takes none; references larger than the
                position table.
        """
        patch = self.mmdit.config.patch_size
        positions = self.mmdit.positions(reference.shape[2] // patch, reference.shape[3] // patch)
        identity_tokens, identity_mask = self.identity_tokens(reference, reference_mask, positions, drop_identity)
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
        predicted = self.mmdit(latents, timestep, conditions, identity_scale, expression_scale)
        if self.prediction == "velocity":
            return predicted
        # Velocity noise - clean, with the noise that leads from the predicted clean latents to the given ones.
        sigma = jnp.maximum(timestep, SMALLEST_SIGMA)[..., None, None, None]
        return (latents.astype(jnp.float32) - predicted) / sigma
