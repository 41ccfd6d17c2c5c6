"""The denoiser's training step as a program for chips that need not be there: only shapes are made, no arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from genaffect_jax.compile_check.sampler import frozen_shapes, on
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.groups import REFERENCES_PER_GROUP
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.sharding import batch_sharding, check_batch, replicated
from genaffect_jax.parallel.xla import Platform, compiling_for
from genaffect_jax.training.denoiser.auxiliary import load_auxiliary
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.step import make_train_step
from genaffect_jax.training.trainable import freeze


def batch_shapes(config: DenoiserRun, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch of `data.loader`, over all processes, cut as training cuts it.

    Raises:
        ConfigError: `train.batch_size` does not divide over the mesh.
    """
    groups, expressions = config.train.batch_size, config.data.expressions_per_set
    check_batch(groups, config.train.gradient_accumulation_steps, mesh)
    model, sharding = config.model, batch_sharding(mesh)
    side, channels = model.mmdit.sample_size, model.mmdit.in_channels
    image = (side, side, channels) if config.data.cache_latents else (model.image_size, model.image_size, 3)
    kind = jnp.float16 if config.data.cache_latents else jnp.uint8
    batch: dict[str, tuple[tuple[int, ...], type]] = {
        "reference": ((REFERENCES_PER_GROUP, *image), kind),
        "target": ((expressions, *image), kind),
        "expression": ((expressions, model.conditioning.expression_width), jnp.float32),
        "identity": ((), jnp.int32),
    }
    if not model.mmdit.register_tokens:
        batch["prompt"] = ((expressions,), jnp.int32)
    if model.conditioning.identity_embedding:
        batch["embedding"] = ((REFERENCES_PER_GROUP, model.conditioning.identity_embedding), jnp.float16)
    return {
        name: jax.ShapeDtypeStruct((groups, *shape), dtype, sharding=sharding) for name, (shape, dtype) in batch.items()
    }


def lower_train_step(config: DenoiserRun, mesh: Mesh, target: Platform | None = None) -> jax.stages.Lowered:
    """The step that `training.denoiser.task` runs, for the devices of a mesh.

    Args:
        config: the training.
        mesh: its devices need not be there.
        target: lower it for another kind of device than the mesh's, to see whether that goes; it cannot be compiled.

    Raises:
        ConfigError: the configuration's networks, selection or batch do not fit each other or the mesh.
        ValueError: the mesh does not divide a parameter.
        WeightsError: a face encoder that the configuration names, whose file says its sizes, cannot be read.
    """
    denoiser, autoencoder = build_networks(config.model, config.train.compute_dtype)
    denoiser = freeze(denoiser, config.train)
    auxiliary = load_auxiliary(config.auxiliary, config.model.conditioning.expression_width)
    optimizer = make_optimizer(config.train)
    frozen_components = frozen_shapes(config, autoencoder, replicated(mesh))
    if auxiliary is not None:
        frozen_components["auxiliary"] = on(replicated(mesh), auxiliary.frozen_components())
    target = target or mesh.devices.flat[0].platform
    with compiling_for(target):
        step = make_train_step(
            denoiser,
            make_denoiser_loss(config.flow, autoencoder, auxiliary),
            optimizer,
            ema_decay=config.train.ema_decay,
            seed=config.train.seed,
            mesh=mesh,
            gradient_accumulation_steps=config.train.gradient_accumulation_steps,
        )
        traced = step.trace(  # type: ignore[attr-defined]
            abstract_state(denoiser, optimizer, mesh), frozen_components, batch_shapes(config, mesh)
        )
        return traced.lower(lowering_platforms=(target,))


def trained_share(config: DenoiserRun) -> float:
    """The share of the denoiser's weights that train."""
    denoiser = freeze(build_networks(config.model, config.train.compute_dtype)[0], config.train)
    return denoiser.trainable_size / denoiser.size
