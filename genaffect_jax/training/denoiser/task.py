"""Training of the denoiser, put together: images, latents, objective and preview."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8
from rich.console import Console

from genaffect_jax.checkpoints.components import claim_encoders, claim_prototypes
from genaffect_jax.checkpoints.prompts import claim_prompts
from genaffect_jax.checkpoints.run_dir import AUTOENCODER_FILE, claim_workdir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.groups import split_identities
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.base import Example, Source
from genaffect_jax.data.sources.open import check_source, open_source
from genaffect_jax.diffusion.schedule import euler_sigmas
from genaffect_jax.errors import DataError
from genaffect_jax.inference.program import Program, SamplerParams, SamplerSpec, SetInputs, make_program
from genaffect_jax.io.image_grid import contact_sheet
from genaffect_jax.io.weight_file import checksum, load_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.flops import step_flops
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.distributed import first_process_first, gathered
from genaffect_jax.parallel.mesh import describe_devices, make_mesh
from genaffect_jax.parallel.sharding import batch_parts, batch_shard, check_batch, place, replicated
from genaffect_jax.training.denoiser.auxiliary import load_auxiliary
from genaffect_jax.training.denoiser.conditioning_probe import ConditioningProbe, held_out_batch
from genaffect_jax.training.denoiser.features import cache_features
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.denoiser.pretrained import initial_parameters, place_autoencoder
from genaffect_jax.training.loop import Task, fit
from genaffect_jax.training.trainable import describe, freeze

_PREVIEW_STEPS = 16
_PREVIEW_IMAGES = 7


def train_denoiser(config: DenoiserRun, workdir: Path, console: Console) -> bool:
    """Trains the denoiser into a run folder; continues the run that the folder holds.

    Returns:
        True if all steps are done, False if a signal ended the run (a checkpoint is written either way).

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: see their classes.
    """
    denoiser, autoencoder = build_networks(config.model, config.train.compute_dtype)
    denoiser = freeze(denoiser, config.train)
    auxiliary = load_auxiliary(config.auxiliary, config.model.conditioning.expression_width)
    check_source(config.data)
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.gradient_accumulation_steps, mesh)
    shard_index, num_shards = batch_shard(mesh)
    with first_process_first("run folder"):
        resolved = claim_workdir(workdir, config)
        console.print(f"denoiser: {describe(denoiser)} on {describe_devices(mesh)}")

        weights = workdir / AUTOENCODER_FILE
        if not weights.exists():  # the folder stays usable when the original file moves
            place_autoencoder(config.model.autoencoder, config.model.autoencoder_weights, weights)
        autoencoder_parameters = load_weights(autoencoder, weights, config.model.autoencoder)
        faces = claim_encoders(config.model, workdir)

        source = open_source(config.data, workdir)
        people, held_out = split_identities(source, config.data.holdout, config.train.seed)
        console.print(f"{source.describe()}: {len(people)} people to train on, {len(held_out)} held out")
        stored = cache_features(config, source, workdir, faces, autoencoder, autoencoder_parameters, checksum(weights))
        if config.model.conditioning.expression_space == "encoder" and faces.expression is not None:
            prototypes = claim_prototypes(workdir, stored.examples, people, faces.expression)
            console.print(f"word prototypes: {len(prototypes.vectors)} words, vectors of {prototypes.encoder}")
        text = claim_prompts(config, workdir, source.examples)
    # On the mesh once, or every step would copy it there.
    frozen_components: dict[str, Any] = place({"autoencoder": autoencoder_parameters}, replicated(mesh))
    if auxiliary is not None:
        frozen_components["auxiliary"] = place(auxiliary.frozen_components(), replicated(mesh))
    if faces.identity is not None:
        frozen_components["identity_encoder"] = place(faces.identity.parameters, replicated(mesh))
    if text is not None:
        frozen_components["prompts"] = place(Prompts.of(text[0], config.text.negative), replicated(mesh))
        console.print(f"{len(text[0].prompts)} prompts, {text[0].tokens.nbytes / 1e6:.0f} MB of {text[0].dtype}")
    batches = make_loader(
        stored,
        people,
        batch_size=config.train.batch_size,
        expressions_per_set=config.data.expressions_per_set,
        seed=config.train.seed,
        workers=config.data.workers,
        shard_index=shard_index,
        num_shards=num_shards,
        prompts=None if text is None else text[1],
    )
    task = Task(
        functional=denoiser,
        loss=make_denoiser_loss(config.flow, autoencoder, auxiliary),
        frozen_components=frozen_components,
        batches=batches,
        images_per_step=config.train.batch_size * config.data.expressions_per_set,
        preview=_make_preview(
            config,
            make_program(
                config.model,
                denoiser,
                autoencoder,
                None if faces.identity is None else faces.identity.network,
            ),
            frozen_components,
            source,
            stored.examples,
            (held_out or people)[0],
            None if text is None else text[1],
        ),
        config=resolved,
        initial=lambda: initial_parameters(config.model, mesh),
        step_flops=step_flops(config, denoiser.trainable_size / denoiser.size, remat=False),
        probe=_make_gap(
            config,
            denoiser,
            autoencoder,
            frozen_components,
            stored,
            people,
            held_out,
            mesh,
            None if text is None else text[1],
            console,
        ),
    )
    return fit(task, config.train, mesh, workdir, console)


def _make_gap(
    config: DenoiserRun,
    denoiser: Functional,
    autoencoder: Functional[AutoencoderKL],
    frozen_components: Mapping[str, Any],
    source: Source,
    people: list[str],
    held_out: list[str],
    mesh: Mesh,
    rows: Int32[np.ndarray, " images"] | None,
    console: Console,
) -> ConditioningProbe | None:
    """The conditioning probe on held-out people; on all, and saying so, where fewer than two are held out.

    None, and saying so, for data that cannot show them.
    """
    if not config.train.probe_every:
        return None
    if len(held_out) < 2:
        console.print(f"conditioning probe: {len(held_out)} held out, so people trained on are measured too")
        held_out = [*held_out, *people]
    try:
        batch = held_out_batch(
            source,
            held_out,
            expressions_per_set=config.data.expressions_per_set,
            seed=config.train.seed,
            devices=batch_parts(mesh),
            prompts=rows,
        )
        return ConditioningProbe(config.flow, denoiser, autoencoder, frozen_components, batch, mesh, config.train.seed)
    except DataError as e:
        console.print(f"conditioning probe: cannot be measured, training goes on without: {e}", style="yellow")
        return None


def _make_preview(
    config: DenoiserRun,
    program: Program,
    frozen_components: Mapping[str, Any],
    source: Source,
    images: Sequence[Example],
    person: str,
    rows: Int32[np.ndarray, " images"] | None,
) -> Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]:
    """A sheet of one person who is not trained on: the reference, then real above drawn for each expression."""
    indices = [i for i, p in enumerate(images) if p.identity == person][: _PREVIEW_IMAGES + 1]
    reference, *real = (source.load(i) for i in indices)
    labels = [images[i].label for i in indices]
    vectors = np.stack([images[i].expression for i in indices[1:]])
    prompt = None if rows is None else rows[indices[1:]][None]
    sigmas = euler_sigmas(_PREVIEW_STEPS, config.flow.shift)
    params = SamplerParams.plain(config.model.mmdit.num_layers, sigmas, _PREVIEW_STEPS)
    inputs = SetInputs(
        jnp.asarray(reference)[None, None],
        jnp.ones((1, 1), bool),
        jnp.asarray(vectors)[None],
        jnp.arange(len(vectors))[None],
        None if prompt is None else jnp.asarray(prompt),
    )

    def preview(parameters: Parameters) -> UInt8[np.ndarray, "H W 3"]:
        drawn = gathered(program(parameters, frozen_components, inputs, params, spec=SamplerSpec())[0])
        return contact_sheet(
            [reference, *real, reference, *np.asarray(drawn)[0]],
            [f"reference: {labels[0]}", *labels[1:], "drawn:", *labels[1:]],
            columns=len(indices),
        )

    return preview
