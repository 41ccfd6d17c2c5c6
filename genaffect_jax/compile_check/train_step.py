"""The generator's training step as a program for chips that need not be there: only shapes are made, no arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from genaffect_jax.compile_check.sampler import frozen_shapes, on
from genaffect_jax.config import Config
from genaffect_jax.data.groups import REFERENCES_PER_GROUP
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.sharding import batch_sharding, check_batch, replicated
from genaffect_jax.parallel.xla import Platform, compiling_for
from genaffect_jax.training.denoiser.auxiliary import load_auxiliary
from genaffect_jax.training.denoiser.loss import make_generator_loss
from genaffect_jax.training.optimizer import make_optimiser
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.step import make_train_step
from genaffect_jax.training.trainable import select


def batch_shapes(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch of `data.loader`, over all processes, cut as training cuts it.

    Raises:
        ConfigError: `train.batch_size` does not divide over the mesh.
    """
    groups, expressions = config.train.batch_size, config.data.expressions_per_set
    check_batch(groups, config.train.accumulate, mesh)
    model, sharding = config.model, batch_sharding(mesh)
    side, channels = model.mmdit.sample_size, model.mmdit.in_channels
    picture = (side, side, channels) if config.data.cache_latents else (model.image_size, model.image_size, 3)
    kind = jnp.float16 if config.data.cache_latents else jnp.uint8
    batch: dict[str, tuple[tuple[int, ...], type]] = {
        "reference": ((REFERENCES_PER_GROUP, *picture), kind),
        "target": ((expressions, *picture), kind),
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


def lower_train_step(config: Config, mesh: Mesh, target: Platform | None = None) -> jax.stages.Lowered:
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
    generator, autoencoder = build_networks(config.model, config.train.compute_dtype)
    generator = select(generator, config.train)
    auxiliary = load_auxiliary(config.auxiliary, config.model.conditioning.expression_width)
    optimiser = make_optimiser(config.train)
    frozen = frozen_shapes(config, autoencoder, replicated(mesh))
    if auxiliary is not None:
        frozen["auxiliary"] = on(replicated(mesh), auxiliary.frozen())
    target = target or mesh.devices.flat[0].platform
    with compiling_for(target):
        step = make_train_step(
            generator,
            make_generator_loss(config.flow, autoencoder, auxiliary),
            optimiser,
            ema_decay=config.train.ema_decay,
            seed=config.train.seed,
            mesh=mesh,
            accumulate=config.train.accumulate,
        )
        traced = step.trace(  # type: ignore[attr-defined]
            abstract_state(generator, optimiser, mesh), frozen, batch_shapes(config, mesh)
        )
        return traced.lower(lowering_platforms=(target,))


def trained_share(config: Config) -> float:
    """The share of the generator's weights that train."""
    generator = select(build_networks(config.model, config.train.compute_dtype)[0], config.train)
    return generator.trainable_size / generator.size
