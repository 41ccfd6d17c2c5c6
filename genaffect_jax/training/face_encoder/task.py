"""Training of a face encoder: one `Task` for the loop, and the weight file and held-out report at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8
from rich.console import Console

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.checkpoints.sources import settle_sources
from genaffect_jax.config import AutoencoderConfig, to_json
from genaffect_jax.config.encoders import EncoderRun
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.open import open_source
from genaffect_jax.data.sources.stored import AvatarSettings, StoredSource, store_avatars
from genaffect_jax.errors import DataError
from genaffect_jax.io.image_grid import contact_sheet
from genaffect_jax.io.output import print_plainly
from genaffect_jax.io.weight_file import load_weights, read_config, resolve_weights, save_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, build_encoder, load_encoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.distributed import first_process_first, gathered, is_first
from genaffect_jax.parallel.mesh import describe_devices, make_mesh
from genaffect_jax.parallel.processors import usable_processors
from genaffect_jax.parallel.sharding import batch_shard, check_batch, place, replicated
from genaffect_jax.training.autoencoder.task import reconstruct
from genaffect_jax.training.face_encoder.degrade import make_degrade
from genaffect_jax.training.face_encoder.loss import (
    EncoderInTraining,
    channel_deviations,
    encoder_parameters,
    make_encoder_loss,
)
from genaffect_jax.training.face_encoder.report import HeldOut, expression_report, identity_report, write_report
from genaffect_jax.training.loop import fit
from genaffect_jax.training.prefetch import Prefetched
from genaffect_jax.training.task import Task
from genaffect_jax.training.trainable import describe, freeze

_PREVIEW_PEOPLE, _PREVIEW_EACH = 4, 6
_SOFTEN_CALL = 64


def train_encoder(config: EncoderRun, workdir: Path, console: Console) -> bool:
    """Trains a face encoder in a run folder; writes its weight file and `report.json` when all steps are done.

    Returns:
        True if all steps are done, False if a signal ended the run.

    Raises:
        ConfigError, DataError, WeightsError, CheckpointError, TrainingError: see their classes.
    """
    network = build_encoder(config.encoder, config.train.compute_dtype)
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.gradient_accumulation_steps, mesh)
    with first_process_first("run folder"):
        run_dir = RunDir.create(workdir, config, lambda line: print_plainly(console, line))
        source = open_encoder_source(config, run_dir)
        settle_sources(run_dir, config, source)
    people, held_out = split_identities(source, config.data.holdout, config.split_seed)
    in_training = freeze(_build_in_training(config, len(people)), config.train)
    console.print(f"{config.name}: {describe(in_training)} on {describe_devices(mesh)}")
    console.print(f"{source.describe()}: {len(people)} people to train on, {len(held_out)} held out")
    if len(held_out) < 4:
        raise DataError(f"{len(held_out)} people held out, the report needs 4: raise data.holdout or data.identities")
    autoencoder, autoencoder_parameters = _degrading_autoencoder(config)
    vectors = _expression_vectors(source, people)
    task = Task(
        functional=in_training,
        loss=make_encoder_loss(config, make_degrade(config.degrade, autoencoder), channel_deviations(vectors)),
        frozen_components=place(autoencoder_parameters, replicated(mesh)),
        batches=_batches(config, source, people, mesh),
        images_per_step=config.train.batch_size * config.data.expressions_per_set,
        preview=_preview(config, network, source, held_out),
        config=to_json(config),
    )
    if not fit(task, config.train, mesh, run_dir, console):
        return False
    checkpoints = Checkpoints(run_dir.path)
    trained = encoder_parameters(gathered(checkpoints.averaged_parameters(in_training, mesh)))
    if is_first():
        summary = {
            "data": source.describe(),
            "held_out_people": len(held_out),
            "split_seed": config.split_seed,
            "seed": config.train.seed,
            "steps": checkpoints.latest_step(),
            "batch_size": config.train.batch_size,
        }
        soften = _softener(autoencoder, autoencoder_parameters)
        shown = HeldOut(source, held_out, soften, procedural_people=_numbers(config, held_out))
        _write_results(config, trained, summary, shown, vectors.mean(0), run_dir, console)
    return True


def open_encoder_source(config: EncoderRun, run_dir: RunDir) -> Source:
    """The images of a run. Procedural ones are rendered once, by all processors, and kept in the run folder or in
    `config.stored`.

    Raises:
        DataError: see `data.sources.open.open_source` and `data.sources.stored.StoredSource`.
    """
    if config.data.source != "procedural":
        return open_source(config.data, run_dir)
    data = config.data
    settings = AvatarSettings(data.image_size, data.identities, data.expressions_per_identity, data.pose_scale)
    workers = 0 if data.workers == 0 else usable_processors()
    folder = run_dir if config.stored is None else RunDir(config.stored)
    return StoredSource(store_avatars(settings, folder.avatars, workers))


def _build_in_training(config: EncoderRun, people: int) -> Functional[EncoderInTraining]:
    return Functional(
        lambda rngs: EncoderInTraining(config.encoder, people, dtype=config.train.compute_dtype, rngs=rngs)
    )


def _expression_vectors(source: Source, people: Sequence[str]) -> Float32[np.ndarray, "B W"]:
    known = set(people)
    return np.stack([example.expression for example in source.examples if example.identity in known])


def _batches(config: EncoderRun, source: Source, people: Sequence[str], mesh: Mesh) -> Prefetched:
    shard_index, num_shards = batch_shard(mesh)
    loader = make_loader(
        source,
        people,
        batch_size=config.train.batch_size,
        expressions_per_set=config.data.expressions_per_set,
        seed=config.train.seed,
        workers=config.data.workers,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    return Prefetched(loader, mesh)


def _write_results(
    config: EncoderRun,
    parameters: Parameters,
    summary: Mapping[str, Any],
    shown: HeldOut,
    typical: Float32[np.ndarray, " W"],
    run_dir: RunDir,
    console: Console,
) -> None:
    """Writes the weight file, and its held-out report: of the file as others will load it, rounded to bfloat16."""
    weights = run_dir.encoder_weights(config.name)
    metadata = {"name": config.name, "licence": config.licence, "training": json.dumps(summary)}
    save_weights(parameters, weights, "bfloat16", config.encoder, metadata)
    encoder = load_encoder(str(weights))
    if config.encoder.target == "identity":
        report = identity_report(encoder, shown)
    else:
        report = expression_report(encoder, shown, typical)
    write_report({"name": encoder.name, "checksum": encoder.checksum, "training": summary, **report}, run_dir.report)
    console.print_json(json.dumps({k: v for k, v in report.items() if k != "channels"}))
    console.print(f"{weights}, {run_dir.report}: written")


def _degrading_autoencoder(config: EncoderRun) -> tuple[Functional[AutoencoderKL] | None, Parameters]:
    if config.degrade.autoencoder is None:
        return None, {}
    path = resolve_weights(config.degrade.autoencoder)
    found = read_config(path, AutoencoderConfig)
    network = Functional(lambda rngs: AutoencoderKL(found, dtype=config.train.compute_dtype, rngs=rngs))
    return network, load_weights(network, path)


def _softener(autoencoder: Functional[AutoencoderKL] | None, parameters: Parameters) -> Any:
    if autoencoder is None:
        return None

    def soften(images: UInt8[np.ndarray, "B S S 3"]) -> UInt8[np.ndarray, "B S S 3"]:
        parts = [images[i : i + _SOFTEN_CALL] for i in range(0, len(images), _SOFTEN_CALL)]
        return np.concatenate([reconstruct(autoencoder, parameters, part) for part in parts])

    return soften


def _numbers(config: EncoderRun, names: Sequence[str]) -> list[int]:
    """Numbers of procedural people, read from their names; `[]` for other sources."""
    return [int(n.removeprefix("avatar")) for n in names] if config.data.source == "procedural" else []


def _preview(
    config: EncoderRun, network: Functional, source: Source, people: Sequence[str]
) -> Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]:
    """Builds the sheet of held-out people, a row each, labelled with the cosine to the first image or with the mean
    absolute error of the expression vector."""
    rows = [
        [i for i, p in enumerate(source.examples) if p.identity == name][:_PREVIEW_EACH]
        for name in people[:_PREVIEW_PEOPLE]
    ]
    columns = min(len(row) for row in rows)
    places = [i for row in rows for i in row[:columns]]
    images = np.stack([source.load(i) for i in places])
    true = np.stack([source.examples[i].expression for i in places])

    def preview(parameters: Parameters) -> UInt8[np.ndarray, "H W 3"]:
        encoder = AvatarEncoder(
            name=config.name,
            licence=config.licence,
            checksum="",
            config=config.encoder,
            network=network,
            parameters=encoder_parameters(gathered(parameters)),
        )
        vectors = encoder(images)
        if config.encoder.target == "identity":
            labels = [f"cosine {v:.2f}" for v in vectors @ vectors[0]]
        else:
            labels = [f"error {e:.3f}" for e in np.abs(vectors - true).mean(-1)]
        return contact_sheet(list(images), labels, columns=columns)

    return preview
