"""The conditioning probe: how much the loss on held-out people grows with a wrong identity or expression.

Adapters on diffusion transformers are known to learn to ignore their condition: the noisy image alone explains most of
the velocity, and images of the right style come out whatever is asked for. The training loss does not show it. The
probe computes the loss on people who are not trained on, once as it is, once with the references of another person,
and once with another expression. A model that uses a condition gets worse with a wrong one; the difference is the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from rich.console import Console

from genaffect_jax.config import FlowConfig
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.base import Source
from genaffect_jax.diffusion import flow
from genaffect_jax.diffusion.seeds import seed_key, seed_words
from genaffect_jax.errors import DataError
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.parallel.sharding import batch_parts, batch_sharding, place, replicated
from genaffect_jax.parallel.xla import compiler_options
from genaffect_jax.training.denoiser.batch import batch_conditions, to_latents
from genaffect_jax.training.denoiser.probe_report import (
    CONDITIONS,
    EVAL_LOSS,
    ProbeReport,
    gap,
    plot_probe,
    probe_rows,
    relative_gap,
)
from genaffect_jax.training.metric_log import Row
from genaffect_jax.training.step import Batch

NOISE_LEVELS = 4
LARGEST_SETS = 8


def noise_levels(config: FlowConfig, count: int) -> Float[Array, " count"]:
    """Noise levels in (0, 1) of training's distribution: the medians of `count` equally likely intervals."""
    return flow.sigma_quantile((jnp.arange(count) + 0.5) / count, config)


def other_expressions(vectors: Float[np.ndarray, "G E W"]) -> Float[np.ndarray, "G E W"]:
    """For each image a different expression vector, that of another image.

    It is taken from the next image of the same person that has a different one, or else from the next person.

    Raises:
        DataError: all vectors are equal.
    """
    groups, expressions = vectors.shape[:2]
    others = np.empty_like(vectors)
    for g, e in np.ndindex(groups, expressions):
        candidates = (
            vectors[(g + i) % groups, (e + j) % expressions] for i in range(groups) for j in range(expressions)
        )
        different = next((v for v in candidates if not np.array_equal(v, vectors[g, e])), None)
        if different is None:
            raise DataError(f"all {groups * expressions} held-out images show the same expression; two are needed")
        others[g, e] = different
    return others


class ConditioningProbe:
    """Measures the gaps of any parameters on one fixed batch, with fixed noise; compiled once. A `training.task.Probe`.

    The loss is that of training (with `change_weight`), without dropout, over `NOISE_LEVELS` levels. Its weight always
    follows from the right reference. The prompt stays the right one: the expression gap is what the expression tokens
    add to it.

    Args:
        config: noise levels and weights of the loss.
        denoiser: the network.
        autoencoder: encodes the batch, if it holds images.
        frozen_components: as for the training loss.
        batch: a batch of `training.denoiser.batch` in which every set shows another person; at least two sets.
        mesh: devices; the batch is cut over them if it divides, and else lies whole on each.
        seed: seed of the noise.

    Raises:
        ValueError: fewer than two sets.
        DataError: all expressions are equal.
    """

    rating = EVAL_LOSS

    def __init__(
        self,
        config: FlowConfig,
        denoiser: Functional[GenAffect],
        autoencoder: Functional[AutoencoderKL],
        frozen_components: Mapping[str, Any],
        batch: Batch,
        mesh: Mesh,
        seed: int = 0,
    ) -> None:
        sets = len(batch["target"])
        if sets < 2:
            raise ValueError(f"conditioning probe: a batch of {sets} set(s); another person's references need two")
        names = ("reference", "embedding", "target", "expression", "prompt")
        entries = {name: batch[name] for name in names if name in batch}
        entries["other_expression"] = other_expressions(np.asarray(batch["expression"]))
        cut = batch_sharding(mesh) if sets % batch_parts(mesh) == 0 else replicated(mesh)
        self._batch = place(entries, cut)
        self._frozen_components = frozen_components
        self._report = ProbeReport()
        self.program = jax.jit(
            _losses(config, denoiser, autoencoder, seed),
            out_shardings=replicated(mesh),
            compiler_options=compiler_options(),
        )

    def measure(self, parameters: Parameters) -> dict[str, float]:
        """The loss with the right conditions and, by condition, its growth with another one's.

        Returns:
            `eval/loss`; `probe/identity` and `probe/expression` in units of the loss; `probe/identity_relative` and
            `probe/expression_relative` as shares of `eval/loss`.
        """
        losses = jax.device_get(self.program(parameters, self._frozen_components, self._batch)).tolist()
        right, *wrong = losses
        gaps = {name: loss - right for name, loss in zip(CONDITIONS, wrong, strict=True)}
        return {
            EVAL_LOSS: right,
            **{gap(name): value for name, value in gaps.items()},
            **{relative_gap(name): value / max(right, 1e-12) for name, value in gaps.items()},
        }

    def report(self, rows: Sequence[Row], steps: int, console: Console) -> None:
        """Warns of each condition that has come to be ignored; see `ProbeReport`."""
        self._report.warn(probe_rows(rows), steps, console)

    def plot(self, rows: Sequence[Row], path: Path) -> None:
        """Plots all measurements of the run, if there are any; see `plot_probe`."""
        measurements = probe_rows(rows)
        if measurements:
            plot_probe(measurements, path)


def _losses(
    config: FlowConfig, denoiser: Functional[GenAffect], autoencoder: Functional[AutoencoderKL], seed: int
) -> Callable[[Parameters, Mapping[str, Any], Batch], Float[Array, " variants"]]:
    """The losses with the right conditions, with another person's references, and with other expressions."""

    def losses(parameters: Parameters, frozen_components: Mapping[str, Any], batch: Batch) -> Float[Array, " variants"]:
        model = denoiser.merge(parameters)
        reference = to_latents(autoencoder, frozen_components, batch["reference"])
        target = to_latents(autoencoder, frozen_components, batch["target"])
        weight = flow.change_weight(target, reference[:, 0], config.change_weight)
        sigmas = noise_levels(config, NOISE_LEVELS)

        def variant(given: Batch) -> Float[Array, ""]:
            conditions = batch_conditions(model, frozen_components, {**batch, **given}, given["reference"])

            def level(number: Int[Array, ""]) -> tuple[Array, Array]:
                noise = jax.random.normal(jax.random.fold_in(seed_key(seed_words(seed)), number), target.shape)
                sigma = jnp.full(target.shape[:2], sigmas[number])
                velocity = model(flow.interpolate(target, noise, sigma), sigma, conditions).prediction
                return flow.flow_loss(velocity, flow.velocity_target(target, noise), weight)

            # Levels and variants are computed one by one: no more memory than a forward pass of one batch.
            totals, counts = jax.lax.map(level, jnp.arange(NOISE_LEVELS))
            return jnp.sum(totals) / jnp.sum(counts)

        right = {"reference": reference, "expression": batch["expression"]}
        if "embedding" in batch:
            right["embedding"] = batch["embedding"]
        rolled = {name: jnp.roll(value, 1, axis=0) for name, value in right.items() if name != "expression"}
        variants = right, {**right, **rolled}, {**right, "expression": batch["other_expression"]}
        return jax.lax.map(variant, jax.tree.map(lambda *values: jnp.stack(values), *variants))

    return losses


def held_out_batch(
    source: Source,
    people: Sequence[str],
    *,
    expressions_per_set: int,
    seed: int,
    devices: int = 1,
    prompts: Int[np.ndarray, " images"] | None = None,
) -> Batch:
    """One fixed batch of up to `LARGEST_SETS` people, one set each; on more devices, of one person for each.

    People who show one expression only are left out. If there are enough people, the sets divide over the devices.

    Args:
        source: images, or their cached features.
        people: people to choose from.
        expressions_per_set: targets of each set.
        seed: decides the images.
        devices: parts that the batch is cut into.
        prompts: row of each image's prompt; None for models that read no prompts.

    Raises:
        DataError: fewer than two people are left.
    """
    shown: dict[str, set[bytes]] = {name: set() for name in people}
    for image in source.examples:
        if image.identity in shown:
            shown[image.identity].add(image.expression_key)
    usable = [name for name in people if len(shown[name]) >= 2]
    if len(usable) < 2:
        raise DataError(f"{len(usable)} people with two expressions; comparing them needs at least two")
    sets = min(len(usable), max(LARGEST_SETS, devices))
    sets = sets // devices * devices or sets
    loader = make_loader(
        source, usable, batch_size=sets, expressions_per_set=expressions_per_set, seed=seed, workers=0, prompts=prompts
    )
    with closing(loader):
        return next(loader)
