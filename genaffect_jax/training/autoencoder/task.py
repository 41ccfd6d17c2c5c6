"""Training of the autoencoder, put together: varied images, objective, preview, and the weight file at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import AUTOENCODER_FILE, claim_workdir
from genaffect_jax.config import AutoencoderConfig, AutoencoderRun
from genaffect_jax.data.echo import EchoedBatches
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.open import check_source, open_source
from genaffect_jax.data.sources.varied import VariedSource
from genaffect_jax.io.image_grid import contact_sheet
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise, to_uint8
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.distributed import first_process_first, gathered, is_first
from genaffect_jax.parallel.mesh import describe_devices, make_mesh
from genaffect_jax.parallel.sharding import batch_shard, check_batch
from genaffect_jax.training.autoencoder.loss import autoencoder_loss, jitter, latent_statistics
from genaffect_jax.training.loop import Task, fit
from genaffect_jax.training.step import Batch, Terms
from genaffect_jax.training.trainable import describe, freeze

_PREVIEW_IMAGES = 6
_STATISTICS_IMAGES = 256


def train_autoencoder(config: AutoencoderRun, workdir: Path, console: Console) -> bool:
    """Trains the autoencoder into a run folder; writes its weight file when all steps are done.

    Returns:
        True if all steps are done, False if a signal ended the run.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: see their classes.
    """
    autoencoder = Functional(
        lambda rngs: AutoencoderKL(config.autoencoder, rngs=rngs, dtype=config.train.compute_dtype)
    )
    autoencoder = freeze(autoencoder, config.train)
    check_source(config.data)
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.gradient_accumulation_steps, mesh)
    shard_index, num_shards = batch_shard(mesh)
    with first_process_first("run folder"):
        resolved = claim_workdir(workdir, config)
        plain = open_source(config.data, workdir)
    console.print(f"autoencoder: {describe(autoencoder)} on {describe_devices(mesh)}")
    people, held_out = split_identities(plain, config.data.holdout, config.train.seed)
    console.print(f"{plain.describe()}: {len(people)} people to train on, {len(held_out)} held out")
    loader = make_loader(
        VariedSource(plain, config.data.image_size, config.train.seed),
        people,
        batch_size=config.train.batch_size,
        expressions_per_set=config.data.expressions_per_set,
        seed=config.train.seed,
        workers=config.data.workers,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    unseen = [i for i, p in enumerate(plain.examples) if p.identity in set(held_out or people)]
    images = np.stack([plain.load(i) for i in unseen[:: max(1, len(unseen) // _STATISTICS_IMAGES)]])

    def loss(model: AutoencoderKL, _: Parameters, batch: Batch, keys: jax.Array) -> Terms:
        side = config.data.image_size
        flat = jnp.concatenate([batch[name].reshape(-1, side, side, 3) for name in ("reference", "target")])
        jitter_key, key = jax.random.split(keys[0])
        flat = jitter(flat, jitter_key)
        total, terms = autoencoder_loss(model, flat, key, kl_weight=config.kl_weight, edge_weight=config.edge_weight)
        return {**terms, "loss": (total, jnp.ones(()))}

    task = Task(
        functional=autoencoder,
        loss=loss,
        frozen_components={},
        batches=EchoedBatches(loader, config.repeats),
        images_per_step=config.train.batch_size * (1 + config.data.expressions_per_set),
        preview=_make_preview(autoencoder, images[:_PREVIEW_IMAGES]),
        config=resolved,
    )
    if not fit(task, config.train, mesh, workdir, console):
        return False
    trained = gathered(Checkpoints(workdir).averaged_parameters(autoencoder, mesh))
    if not is_first():
        return True
    final = _with_statistics(config.autoencoder, autoencoder, trained, images)
    save_weights(trained, workdir / AUTOENCODER_FILE, "bfloat16", final)
    error = reconstruction_error(autoencoder, trained, images)
    console.print(
        f"{workdir / AUTOENCODER_FILE}: shift {final.shift_factor:.5f}, scale {final.scaling_factor:.5f}; "
        f"mean absolute error on {len(images)} held-out images {error:.2f} of 255"
    )
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
    drawn = reconstruct(autoencoder, parameters, images)
    return float(np.abs(drawn.astype(np.int16) - images.astype(np.int16)).mean())


def _with_statistics(
    config: AutoencoderConfig, autoencoder: Functional[AutoencoderKL], parameters: Parameters, images: np.ndarray
) -> AutoencoderConfig:
    shift, scale = latent_statistics(autoencoder.merge(parameters), jnp.asarray(images))
    return dataclasses.replace(config, shift_factor=shift, scaling_factor=scale)


def _make_preview(
    autoencoder: Functional[AutoencoderKL], images: UInt8[np.ndarray, "B S S 3"]
) -> Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]:
    names = [f"image {i + 1}" for i in range(len(images))]

    def preview(parameters: Parameters) -> UInt8[np.ndarray, "H W 3"]:
        drawn = reconstruct(autoencoder, gathered(parameters), images)
        return contact_sheet([*images, *drawn], [*names, *("decoded" for _ in names)], columns=len(images))

    return preview
