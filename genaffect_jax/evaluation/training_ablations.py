"""Ablations of training: the model's own run repeated with one thing changed, each for the same number of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from genaffect_jax.checkpoints.claim import held_run_folder
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation.ablations import Prepare, ablated_settings
from genaffect_jax.evaluation.run import EvaluationRun
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.task import train_denoiser

# Folder of the trainings' run folders, below that of the ablations.
TRAININGS = "trainings"
SHARING = "trained-with-sharing"
# Share of the tokens that targets share in training, and in sampling from the model so trained.
SHARED = 0.5


def trained_variants(config: DenoiserRun) -> dict[str, DenoiserRun]:
    """The trainings by name: a run with one thing changed, for as many steps of as many images.

    `another-seed` changes nothing but the seed. Its differences are what two equal trainings differ by, which intervals
    over people do not hold.

    Args:
        config: the run of the plain model.

    Raises:
        ConfigError: the run cannot be trained in one of the ways, as `ModelConfig` and `DenoiserRun` say.
    """

    def conditioned(attention: Any) -> DenoiserRun:
        conditioning = dataclasses.replace(config.model.conditioning, attention=attention)
        return dataclasses.replace(config, model=dataclasses.replace(config.model, conditioning=conditioning))

    targets = config.data.expressions_per_set
    return {
        "another-seed": dataclasses.replace(
            config, train=dataclasses.replace(config.train, seed=config.train.seed + 1)
        ),
        "concatenated-attention": conditioned("concatenated"),
        "text-stream": conditioned("text"),
        "self-pairs": dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, pairs="self", expressions_per_set=1),
            train=dataclasses.replace(config.train, batch_size=config.train.batch_size * targets),
        ),
        SHARING: dataclasses.replace(config, flow=dataclasses.replace(config.flow, consistency=SHARED)),
    }


def training_ablations(
    run: EvaluationRun, model: Path, out: Path, load: Callable[[Path], Pipeline], console: Console
) -> dict[str, Prepare]:
    """The evaluations of the models that `trained_variants` gives; each is trained when it is first needed.

    The model trained with sharing is evaluated twice, without consistent attention and with it. All others are sampled
    as the plain model is.

    Args:
        run: the evaluation of the plain model; its sampling settings are those that all have in common.
        model: the run folder of the plain model.
        out: folder of the ablations; trainings have run folders below it.
        load: loads the model of a run folder.
        console: for the trainings' messages.

    Raises:
        ConfigError: the plain model's training is not done, so that budgets would differ, or see `trained_variants`.
    """
    config = run.pipeline.config
    done = f"step {config.train.steps},"
    if done not in run.pipeline.name:
        raise ConfigError(
            f"its training goes on to step {config.train.steps}, to which the other models are trained; finish it",
            field="model",
            found=run.pipeline.name,
        )
    plain = next(iter(ablated_settings(run.sampling).values()))

    def prepared(name: str, variant: DenoiserRun, consistency: float) -> EvaluationRun:
        folder = out / TRAININGS / name
        RunDir(folder).share_features(RunDir(model))
        console.print(f"ablation {name}: training in {folder}", highlight=False, soft_wrap=True)
        with held_run_folder(folder):
            if not train_denoiser(variant, folder, console):
                raise KeyboardInterrupt
        sampling = dataclasses.replace(plain, consistency=consistency)
        return dataclasses.replace(run, pipeline=load(folder), sampling=sampling)

    variants = trained_variants(config)
    prepare: dict[str, Prepare] = {name: partial(prepared, name, variant, 0.0) for name, variant in variants.items()}
    prepare[f"{SHARING}-consistency-{SHARED:g}"] = partial(prepared, SHARING, variants[SHARING], SHARED)
    return prepare
