"""Training of the denoiser: the run folder with its frozen components, cached features, and one `Task` for the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8
from rich.console import Console

from genaffect_jax.checkpoints.components import (
    FaceEncoders,
    install_autoencoder,
    install_encoders,
    install_latent_range,
    install_prompts,
    install_prototypes,
)
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.checkpoints.sources import settle_sources
from genaffect_jax.checkpoints.teacher import install_teacher
from genaffect_jax.config import DenoiserRun, to_json
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.prompts.table import PromptTable
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.open import check_source, open_source
from genaffect_jax.diffusion.schedule import euler_sigmas
from genaffect_jax.errors import DataError
from genaffect_jax.inference.program import SamplerParams, SamplerSpec, SetInputs, make_program
from genaffect_jax.io.image_grid import contact_sheet
from genaffect_jax.io.output import print_plainly
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.flops import step_flops
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.distributed import first_process_first, gathered
from genaffect_jax.parallel.mesh import describe_devices, make_mesh
from genaffect_jax.parallel.sharding import batch_parts, batch_shard, check_batch, place, replicated
from genaffect_jax.parallel.xla import deterministic
from genaffect_jax.training.denoiser.auxiliary import TERMS, AuxiliaryLosses, load_auxiliary
from genaffect_jax.training.denoiser.conditioning_probe import ConditioningProbe, held_out_batch
from genaffect_jax.training.denoiser.device_cache import TABLE, cache_on_devices, gathering
from genaffect_jax.training.denoiser.distillation import TEACHER, make_distillation_loss
from genaffect_jax.training.denoiser.features import cache_features
from genaffect_jax.training.denoiser.latent_range import fit_latent_range
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.denoiser.pretrained import initial_parameters, place_autoencoder
from genaffect_jax.training.loop import fit
from genaffect_jax.training.prefetch import Prefetched
from genaffect_jax.training.task import Task
from genaffect_jax.training.trainable import describe, freeze

_PREVIEW_STEPS = 16
_PREVIEW_IMAGES = 7


@dataclass(frozen=True)
class _Networks:
    denoiser: Functional
    """The network that is trained."""
    autoencoder: Functional[AutoencoderKL]
    """Frozen."""
    auxiliary: AuxiliaryLosses | None
    """Losses on the predicted image, with their encoders; None without such losses."""


@dataclass(frozen=True)
class _Data:
    source: Source
    """All images, as pixels."""
    features: Source
    """The same images, with what is cached of them."""
    people: list[str]
    """People that are trained on."""
    held_out: list[str]
    """The others."""
    prompts: PromptTable | None
    """Text embeddings; None for models that read no prompts."""
    prompt_rows: Int32[np.ndarray, " images"] | None
    """Row of each image's prompt."""


def train_denoiser(config: DenoiserRun, workdir: Path, console: Console) -> bool:
    """Trains the denoiser in a run folder; continues the run that the folder holds.

    Returns:
        True if all steps are done, False if a signal ended the run. A checkpoint is written either way.

    Raises:
        ConfigError, DataError, WeightsError, CheckpointError, TrainingError: see their classes.
    """
    networks = _build_networks(config)
    check_source(config.data)
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.gradient_accumulation_steps, mesh)
    with deterministic(config.train.deterministic), first_process_first("run folder"):
        run_dir = RunDir.create(workdir, config, lambda line: print_plainly(console, line))
        console.print(f"denoiser: {describe(networks.denoiser)} on {describe_devices(mesh)}")
        model = config.model
        autoencoder = install_autoencoder(
            run_dir,
            networks.autoencoder,
            model.autoencoder,
            lambda path: place_autoencoder(
                model.autoencoder, model.autoencoder_weights, path, model.autoencoder_variant
            ),
        )
        faces = install_encoders(run_dir, config.model)
        source = open_source(config.data, run_dir)
        people, held_out = split_identities(source, config.data.holdout, config.train.seed)
        console.print(f"{source.describe()}: {len(people)} people to train on, {len(held_out)} held out")
        settle_sources(run_dir, config, source)
        if config.distillation.teacher is not None and not run_dir.has_checkpoint:
            run_dir.share_features(RunDir(config.distillation.teacher))
        features = cache_features(config, source, run_dir, faces, networks.autoencoder, autoencoder)
        _install_prototypes(config, features, people, faces, run_dir, console)
        known = install_latent_range(
            run_dir, lambda: fit_latent_range(config, features, people, networks.autoencoder, autoencoder)
        )
        if known is None:
            console.print(f"{len(people)} people are too few to tell unfamiliar references when sampling")
        table, rows = install_prompts(run_dir, config, source.examples) or (None, None)
    if table is not None:
        console.print(f"{len(table.prompts)} prompts, {table.tokens.nbytes / 1e6:.0f} MB of {table.dtype}")
    data = _Data(source, features, people, held_out, table, rows)
    frozen_components = _frozen_components(config, networks, autoencoder, faces, data, mesh)
    teacher = _install_teacher(config, networks, run_dir, mesh)
    if teacher is None:
        loss = make_denoiser_loss(config.flow, networks.autoencoder, networks.auxiliary)
    else:
        loss = make_distillation_loss(config, networks.denoiser, networks.autoencoder)
        frozen_components[TEACHER] = place(networks.denoiser.cast_kernels(teacher), replicated(mesh))
    examples = cache_on_devices(config.data, features, rows, mesh, console)
    task = Task(
        functional=networks.denoiser,
        loss=loss if examples is None else gathering(loss),
        frozen_components=frozen_components if examples is None else {**frozen_components, TABLE: examples},
        batches=_batches(config, data, mesh, by_index=examples is not None),
        images_per_step=config.train.batch_size * config.data.expressions_per_set,
        preview=_preview(config, networks, faces, frozen_components, data),
        config=to_json(config),
        initial=lambda: _initial(config, teacher, mesh),
        probe=_probe(config, networks, frozen_components, data, mesh, console) if teacher is None else None,
        sparse_terms=TERMS,
        step_flops=step_flops(config, networks.denoiser.trainable_size / networks.denoiser.size, remat=False),
    )
    return fit(task, config.train, mesh, run_dir, console)


def _build_networks(config: DenoiserRun) -> _Networks:
    denoiser, autoencoder = build_networks(config.model, config.train.compute_dtype)
    return _Networks(
        freeze(denoiser, config.train),
        autoencoder,
        load_auxiliary(config.auxiliary, config.model.conditioning.expression_width),
    )


def _install_prototypes(
    config: DenoiserRun, features: Source, people: list[str], faces: FaceEncoders, run_dir: RunDir, console: Console
) -> None:
    """The vectors of words, for a model whose expressions are the vectors of its expression encoder."""
    if config.model.conditioning.expression_space == "encoder" and faces.expression is not None:
        prototypes = install_prototypes(run_dir, features.examples, people, faces.expression)
        console.print(f"word prototypes: {len(prototypes.vectors)} words, vectors of {prototypes.encoder}")


def _install_teacher(config: DenoiserRun, networks: _Networks, run_dir: RunDir, mesh: Mesh) -> Parameters | None:
    """The teacher's parameters, with which its student begins; None without a teacher."""
    if config.distillation.teacher is None:
        return None
    return install_teacher(run_dir, config, networks.denoiser, mesh)


def _initial(config: DenoiserRun, teacher: Parameters | None, mesh: Mesh) -> Parameters:
    """The parameters that do not start at random; the training may write over them."""
    if teacher is None:
        return initial_parameters(config.model, mesh)
    return place(jax.tree.map(jnp.copy, teacher), replicated(mesh))


def _frozen_components(
    config: DenoiserRun,
    networks: _Networks,
    autoencoder: Parameters,
    faces: FaceEncoders,
    data: _Data,
    mesh: Mesh,
) -> dict[str, Any]:
    """Arrays of other networks, put on the mesh once: left on the host, every step would copy them there."""
    components: dict[str, Any] = {"autoencoder": autoencoder}
    if networks.auxiliary is not None:
        components["auxiliary"] = networks.auxiliary.frozen_components()
    if faces.identity is not None:
        components["identity_encoder"] = faces.identity.parameters
    if data.prompts is not None:
        components["prompts"] = Prompts.of(data.prompts, config.text.negative)
    return place(components, replicated(mesh))


def _batches(config: DenoiserRun, data: _Data, mesh: Mesh, by_index: bool) -> Prefetched:
    shard_index, num_shards = batch_shard(mesh)
    loader = make_loader(
        data.features,
        data.people,
        batch_size=config.train.batch_size,
        expressions_per_set=config.data.expressions_per_set,
        seed=config.train.seed,
        workers=config.data.workers,
        shard_index=shard_index,
        num_shards=num_shards,
        prompts=data.prompt_rows,
        by_index=by_index,
        pairs=config.data.pairs,
    )
    return Prefetched(loader, mesh)


def _probe(
    config: DenoiserRun,
    networks: _Networks,
    frozen_components: dict[str, Any],
    data: _Data,
    mesh: Mesh,
    console: Console,
) -> ConditioningProbe | None:
    """The conditioning probe on held-out people; on all people where fewer than two are held out, and None where the
    data cannot show a wrong condition. Both exceptions are printed."""
    if not config.train.probe_every:
        return None
    people = data.held_out
    if len(people) < 2:
        console.print(f"conditioning probe: {len(people)} held out, so people trained on are measured too")
        people = [*people, *data.people]
    try:
        batch = held_out_batch(
            data.features,
            people,
            expressions_per_set=config.data.expressions_per_set,
            seed=config.train.seed,
            devices=batch_parts(mesh),
            prompts=data.prompt_rows,
        )
        return ConditioningProbe(
            config.flow, networks.denoiser, networks.autoencoder, frozen_components, batch, mesh, config.train.seed
        )
    except DataError as e:
        console.print(f"conditioning probe: cannot be measured, training goes on without: {e}", style="yellow")
        return None


def _preview(
    config: DenoiserRun, networks: _Networks, faces: FaceEncoders, frozen_components: dict[str, Any], data: _Data
) -> Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]:
    """Builds the sample sheet of one held-out person: the reference, and for each expression the real image above the
    sample."""
    program = make_program(
        config.model,
        networks.denoiser,
        networks.autoencoder,
        None if faces.identity is None else faces.identity.network,
    )
    examples, person = data.features.examples, (data.held_out or data.people)[0]
    indices = [i for i, example in enumerate(examples) if example.identity == person][: _PREVIEW_IMAGES + 1]
    reference, *real = (data.source.load(i) for i in indices)
    labels = [examples[i].label for i in indices]
    vectors = np.stack([examples[i].expression for i in indices[1:]])
    inputs = SetInputs(
        jnp.asarray(reference)[None, None],
        jnp.ones((1, 1), bool),
        jnp.asarray(vectors)[None],
        jnp.arange(len(vectors))[None],
        None if data.prompt_rows is None else jnp.asarray(data.prompt_rows[indices[1:]][None]),
    )
    sigmas = euler_sigmas(_PREVIEW_STEPS, config.flow.shift)
    params = SamplerParams.plain(config.model.mmdit.num_layers, sigmas, _PREVIEW_STEPS)

    def preview(parameters: Parameters) -> UInt8[np.ndarray, "H W 3"]:
        samples = gathered(program(parameters, frozen_components, inputs, params, spec=SamplerSpec())[0])
        return contact_sheet(
            [reference, *real, reference, *np.asarray(samples)[0]],
            [f"reference: {labels[0]}", *labels[1:], "samples:", *labels[1:]],
            columns=len(indices),
        )

    return preview
