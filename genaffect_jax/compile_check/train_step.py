"""The denoiser's training step as a program for chips that this machine does not have, made of shapes."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from genaffect_jax.compile_check.sampler import frozen_shapes, on
from genaffect_jax.config import DenoiserRun
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.sharding import batch_sharding, check_batch, replicated
from genaffect_jax.parallel.xla import Platform, compiling_for, deterministic
from genaffect_jax.training.denoiser.auxiliary import load_auxiliary
from genaffect_jax.training.denoiser.batch import batch_shapes
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.step import make_train_step
from genaffect_jax.training.trainable import freeze


def lower_train_step(config: DenoiserRun, mesh: Mesh, target: Platform | None = None) -> jax.stages.Lowered:
    """The training step of `training.denoiser.task`, lowered for the devices of a mesh.

    Args:
        config: the training.
        mesh: the devices; they may be those of a topology.
        target: lowers the step for another kind of device than the mesh's, which only checks that this is possible: the
            result cannot be compiled.

    Raises:
        ConfigError: networks, `train.trainable` or batch of the configuration do not fit each other or the mesh, or the
            step cannot be deterministic (`train.deterministic`).
        ValueError: the mesh does not divide a parameter.
        WeightsError: the weight file of a configured face encoder, whose header gives its sizes, cannot be read.
    """
    check_batch(config.train.batch_size, config.train.gradient_accumulation_steps, mesh)
    denoiser, autoencoder = build_networks(config.model, config.train.compute_dtype)
    denoiser = freeze(denoiser, config.train)
    auxiliary = load_auxiliary(config.auxiliary, config.model.conditioning.expression_width)
    optimizer = make_optimizer(config.train)
    frozen_components = frozen_shapes(config, autoencoder, replicated(mesh))
    if auxiliary is not None:
        frozen_components["auxiliary"] = on(replicated(mesh), auxiliary.frozen_components())
    target = target or mesh.devices.flat[0].platform
    with compiling_for(target), deterministic(config.train.deterministic):
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
            abstract_state(denoiser, optimizer, mesh), frozen_components, on(batch_sharding(mesh), batch_shapes(config))
        )
        # JAX resolves "gpu" only where there is one.
        return traced.lower(lowering_platforms=("cuda" if target == "gpu" else target,))


def trained_share(config: DenoiserRun) -> float:
    """The share of the denoiser's parameters that are trained."""
    denoiser = freeze(build_networks(config.model, config.train.compute_dtype)[0], config.train)
    return denoiser.trainable_size / denoiser.size
