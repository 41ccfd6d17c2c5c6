"""Training of the autoencoder: one `Task` of varied images for the loop, and the weight file at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from rich.console import Console

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.checkpoints.sources import settle_sources
from genaffect_jax.config import AutoencoderRun, to_json
from genaffect_jax.data.echo import EchoedBatches
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.open import check_source, open_source
from genaffect_jax.data.sources.varied import VariedSource
from genaffect_jax.io.image_grid import contact_sheet
from genaffect_jax.io.output import print_plainly
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise, to_uint8
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.distributed import first_process_first, gathered, is_first
from genaffect_jax.parallel.mesh import describe_devices, make_mesh
from genaffect_jax.parallel.sharding import batch_shard, check_batch
from genaffect_jax.training.autoencoder.loss import autoencoder_loss, jitter, latent_statistics
from genaffect_jax.training.loop import fit
from genaffect_jax.training.prefetch import Prefetched
from genaffect_jax.training.step import Batch, LossFunction, Terms
from genaffect_jax.training.task import Task
from genaffect_jax.training.trainable import describe, freeze

_PREVIEW_IMAGES = 6
_STATISTICS_IMAGES = 256


def train_autoencoder(config: AutoencoderRun, workdir: Path, console: Console) -> bool:
    """Trains the autoencoder in a run folder; writes its weight file when all steps are done.

    Returns:
        True if all steps are done, False if a signal ended the run.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: see their classes.
    """
    autoencoder = freeze(build_autoencoder(config), config.train)
    check_source(config.data)
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.gradient_accumulation_steps, mesh)
    with first_process_first("run folder"):
        run_dir = RunDir.create(workdir, config, lambda line: print_plainly(console, line))
        source = open_source(config.data, run_dir)
        settle_sources(run_dir, config, source)
    console.print(f"autoencoder: {describe(autoencoder)} on {describe_devices(mesh)}")
    people, held_out = split_identities(source, config.data.holdout, config.train.seed)
    console.print(f"{source.describe()}: {len(people)} people to train on, {len(held_out)} held out")
    images = _held_out_images(source, held_out or people)
    task = Task(
        functional=autoencoder,
        loss=make_autoencoder_loss(config),
        frozen_components={},
        batches=_batches(config, source, people, mesh),
        images_per_step=config.train.batch_size * (1 + config.data.expressions_per_set),
        preview=_preview(autoencoder, images[:_PREVIEW_IMAGES]),
        config=to_json(config),
    )
    if not fit(task, config.train, mesh, run_dir, console):
        return False
    trained = gathered(Checkpoints(run_dir.path).averaged_parameters(autoencoder, mesh))
    if is_first():
        _write_weights(config, autoencoder, trained, images, run_dir, console)
    return True


def reconstruct(
    autoencoder: Functional[AutoencoderKL], parameters: Parameters, images: UInt8[np.ndarray, "B S S 3"]
) -> UInt8[np.ndarray, "B S S 3"]:
    """Images through encoder and decoder, without sampling noise."""

    @jax.jit
    def program(parameters: Parameters, images: jax.Array) -> jax.Array:
        model = autoencoder.merge(parameters)
        return to_uint8(model.from_latents(model.to_latents(normalise(images))))

    return np.asarray(program(parameters, images))


def reconstruction_error(
    autoencoder: Functional[AutoencoderKL], parameters: Parameters, images: UInt8[np.ndarray, "B S S 3"]
) -> float:
    """Mean absolute error of the reconstruction, in grey levels of 255."""
    decoded = reconstruct(autoencoder, parameters, images)
    return float(np.abs(decoded.astype(np.int16) - images.astype(np.int16)).mean())


def build_autoencoder(config: AutoencoderRun) -> Functional[AutoencoderKL]:
    """The network of a configuration, in its compute type."""
    return Functional(lambda rngs: AutoencoderKL(config.autoencoder, rngs=rngs, dtype=config.train.compute_dtype))


def _held_out_images(source: Source, people: Sequence[str]) -> UInt8[np.ndarray, "B S S 3"]:
    """About `_STATISTICS_IMAGES` images of these people, evenly chosen."""
    wanted = set(people)
    places = [i for i, example in enumerate(source.examples) if example.identity in wanted]
    return np.stack([source.load(i) for i in places[:: max(1, len(places) // _STATISTICS_IMAGES)]])


def _batches(config: AutoencoderRun, source: Source, people: Sequence[str], mesh: Mesh) -> Prefetched:
    shard_index, num_shards = batch_shard(mesh)
    loader = make_loader(
        VariedSource(source, config.data.image_size, config.train.seed),
        people,
        batch_size=config.train.batch_size,
        expressions_per_set=config.data.expressions_per_set,
        seed=config.train.seed,
        workers=config.data.workers,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    return Prefetched(EchoedBatches(loader, config.repeats), mesh)


def make_autoencoder_loss(config: AutoencoderRun) -> LossFunction:
    """The autoencoder's loss on all images of a batch, each moved, mirrored and tinted at random."""

    def loss(model: AutoencoderKL, _: Any, batch: Batch, keys: jax.Array) -> Terms:
        side = config.data.image_size
        flat = jnp.concatenate([batch[name].reshape(-1, side, side, 3) for name in ("reference", "target")])
        jitter_key, key = jax.random.split(keys[0])
        flat = jitter(flat, jitter_key)
        total, terms = autoencoder_loss(model, flat, key, kl_weight=config.kl_weight, edge_weight=config.edge_weight)
        return {**terms, "loss": (total, jnp.ones(()))}

    return loss


def _write_weights(
    config: AutoencoderRun,
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
    images: UInt8[np.ndarray, "B S S 3"],
    run_dir: RunDir,
    console: Console,
) -> None:
    """Writes the weight file, with shift and scale of the latents of held-out images, and prints how well it does."""
    shift, scale = latent_statistics(autoencoder.merge(parameters), jnp.asarray(images))
    final = dataclasses.replace(config.autoencoder, shift_factor=shift, scaling_factor=scale)
    save_weights(parameters, run_dir.autoencoder, "bfloat16", final)
    error = reconstruction_error(autoencoder, parameters, images)
    console.print(
        f"{run_dir.autoencoder}: shift {shift:.5f}, scale {scale:.5f}; "
        f"mean absolute error on {len(images)} held-out images {error:.2f} of 255"
    )


def _preview(
    autoencoder: Functional[AutoencoderKL], images: UInt8[np.ndarray, "B S S 3"]
) -> Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]:
    names = [f"image {i + 1}" for i in range(len(images))]

    def preview(parameters: Parameters) -> UInt8[np.ndarray, "H W 3"]:
        decoded = reconstruct(autoencoder, gathered(parameters), images)
        return contact_sheet([*images, *decoded], [*names, *("decoded" for _ in names)], columns=len(images))

    return preview
