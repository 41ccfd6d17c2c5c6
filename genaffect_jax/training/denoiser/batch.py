"""The batch of the denoiser's training: its schema, and how the loss and the conditioning probe read it.

| key | shape | dtype | content |
|---|---|---|---|
| `reference` | [G, R, S, S, 3] or [G, R, h, w, c] | uint8 or float16 | reference images, or their cached latents |
| `target` | [G, E, S, S, 3] or [G, E, h, w, c] | uint8 or float16 | target images, or their cached latents |
| `expression` | [G, E, W] | float32 | expression vectors of the targets |
| `identity` | [G] | int32 | place of the person among the people trained on |
| `prompt` | [G, E] | int32 | rows of the targets' prompts; models that read prompts |
| `embedding` | [G, R, F] | float16 | face embeddings of the references; models with an identity encoder |

A batch has G sets of E targets and R references. `data.loader` makes it, in any training; `batch_shapes` says the same
for a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.groups import REFERENCES_PER_GROUP
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.mmdit.model import Conditions
from genaffect_jax.training.step import Batch


def batch_shapes(config: DenoiserRun) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a whole batch, over all processes, of a training with this configuration."""
    model, expressions = config.model, config.data.expressions_per_set
    side, channels = model.mmdit.sample_size, model.mmdit.in_channels
    image = (side, side, channels) if config.data.cache_latents else (model.image_size, model.image_size, 3)
    image_dtype = jnp.float16 if config.data.cache_latents else jnp.uint8
    entries: dict[str, tuple[tuple[int, ...], Any]] = {
        "reference": ((REFERENCES_PER_GROUP, *image), image_dtype),
        "target": ((expressions, *image), image_dtype),
        "expression": ((expressions, model.conditioning.expression_width), jnp.float32),
        "identity": ((), jnp.int32),
    }
    if model.mmdit.reads_prompts:
        entries["prompt"] = ((expressions,), jnp.int32)
    if model.conditioning.identity_embedding:
        entries["embedding"] = ((REFERENCES_PER_GROUP, model.conditioning.identity_embedding), jnp.float16)
    sets = config.train.batch_size
    return {name: jax.ShapeDtypeStruct((sets, *shape), dtype) for name, (shape, dtype) in entries.items()}


def to_latents(autoencoder: Functional[AutoencoderKL], frozen_components: Mapping[str, Any], images: Array) -> Array:
    """Latents (float32) of uint8 images [..., S, S, 3]; floating-point arrays are latents already."""
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
    """The conditions of a batch, whose references are given as latents; see `GenAffect.encode_conditions`."""
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
