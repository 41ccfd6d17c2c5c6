"""The loss of distillation: one step of the student goes where many guided steps of the teacher go.

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512) in one stage, with the teacher's guidance distilled at
the same time (Meng et al. 2023, arXiv 2210.03142): the student learns its few noise levels only. The start of a step is
a noisy training image, not a point of the teacher's own path, as in the first of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genaffect_jax.config import DenoiserRun
from genaffect_jax.diffusion import flow
from genaffect_jax.diffusion.guidance import branch_drops, combine, repeat_branches
from genaffect_jax.diffusion.schedule import euler_sigmas, shift_sigma
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.training.denoiser.batch import batch_conditions, to_latents
from genaffect_jax.training.denoiser.loss import step_sharing
from genaffect_jax.training.step import Batch, LossFunction, Terms

# Folded into the key of the first set, so that the weights of a step have no key in common with a set's own draws.
_SCALES = 0x7363616C
TEACHER = "teacher"
"""The teacher's parameters among the frozen components."""


class Step(NamedTuple):
    """One step of the student, for every image of a batch."""

    start: Float[Array, "G E"]
    """Noise level where it begins."""
    end: Float[Array, "G E"]
    """Noise level where it ends."""
    noise: Float[Array, "G E h w c"]
    """Noise of its start."""


def make_distillation_loss(
    config: DenoiserRun, teacher: Functional[GenAffect], autoencoder: Functional[AutoencoderKL]
) -> LossFunction:
    """Builds the loss `(model, frozen_components, batch, keys) -> Terms` of a student.

    `flow_loss` is the squared difference between the student's velocity and the one that leads from the start of its
    step to the teacher's end of it; `loss` is the same with `flow.change_weight`.

    Args:
        config: the run; `distillation` describes the steps.
        teacher: the teacher's network. Its parameters are `frozen_components["teacher"]`.
        autoencoder: encodes images of a batch that holds no latents.

    Batch and frozen components are otherwise those of `training.denoiser.loss`.
    """
    distillation = config.distillation

    def loss(model: GenAffect, frozen_components: Mapping[str, Any], batch: Batch, keys: Key[Array, " G"]) -> Terms:
        reference = to_latents(autoencoder, frozen_components, batch["reference"])
        target = to_latents(autoencoder, frozen_components, batch["target"])
        step = draw_step(config, target, keys)
        noisy = flow.interpolate(target, step.noise, step.start)
        common = {"sharing": step_sharing(config.flow, model, keys, target), **_scales(distillation.scales, keys)}
        guide = teacher.merge(frozen_components[TEACHER])
        end = teacher_end(config, guide, frozen_components, batch, reference, noisy, step, common)
        conditions = batch_conditions(model, frozen_components, batch, reference)
        velocity = model(noisy, step.start, conditions, **common).prediction
        wanted = (jax.lax.stop_gradient(end) - noisy) / (step.end - step.start)[..., None, None, None]
        weight = flow.change_weight(target, reference[:, 0], config.flow.change_weight)
        return {
            "loss": flow.flow_loss(velocity, wanted, weight),
            "flow_loss": flow.flow_loss(velocity, wanted),
        }

    return loss


def draw_step(config: DenoiserRun, target: Float[Array, "G E h w c"], keys: Key[Array, " G"]) -> Step:
    """Which of its steps the student takes for every image, at random; the images of sets that share take the same."""
    distillation = config.distillation
    levels = jnp.asarray(euler_sigmas(distillation.steps, config.flow.shift))
    expressions, *latents = target.shape[1:]
    places = 1 if config.flow.consistency else expressions

    def of_set(key: Key[Array, ""]) -> Step:
        place_key, noise_key = jax.random.split(key)
        place = jnp.broadcast_to(jax.random.randint(place_key, (places,), 0, distillation.steps), (expressions,))
        return Step(levels[place], levels[place + 1], jax.random.normal(noise_key, (expressions, *latents)))

    return jax.vmap(of_set)(keys)


def teacher_end(
    config: DenoiserRun,
    teacher: GenAffect,
    frozen_components: Mapping[str, Any],
    batch: Batch,
    reference: Float[Array, "G R h w c"],
    noisy: Float[Array, "G E h w c"],
    step: Step,
    common: Mapping[str, Any],
) -> Float[Array, "G E h w c"]:
    """Where the teacher's guided Euler steps lead from the start of the student's step to its end, float32.

    The noise levels between are evenly spaced before the shift. `common` are the arguments that both models are called
    with: branch weights and sharing.
    """
    distillation, shift = config.distillation, config.flow.shift
    mode, count = distillation.mode, distillation.teacher_steps
    drop_identity, drop_expression = branch_drops(mode, *step.start.shape)
    conditions = batch_conditions(
        teacher,
        frozen_components,
        {name: repeat_branches(value, mode) for name, value in batch.items()},
        repeat_branches(reference, mode),
        drop_identity,
        drop_expression,
        drop_identity[:, None] & drop_expression,
    )
    first, last = (sigma / (shift - (shift - 1) * sigma) for sigma in (step.start, step.end))

    def level(place: Array) -> Float[Array, "G E"]:
        return shift_sigma(first + (last - first) * (place / count), shift)

    def advance(place: Array, latents: Array) -> Array:
        sigma = level(place)
        branches = repeat_branches(latents, mode), repeat_branches(sigma, mode)
        velocity = teacher(*branches, conditions, **common).prediction.astype(jnp.float32)
        slope = combine(velocity, mode, distillation.guidance_identity, distillation.guidance_expression)
        return latents + (level(place + 1) - sigma)[..., None, None, None] * slope

    return jax.lax.fori_loop(0, count, advance, noisy.astype(jnp.float32))


def _scales(limits: tuple[float, float], keys: Key[Array, " G"]) -> dict[str, Any]:
    """The branch weights of a step, drawn with the key of the first set; none where all are 1."""
    low, high = limits
    if low == high == 1.0:
        return {}
    key = jax.random.fold_in(keys[0], _SCALES)
    identity, expression = jax.random.uniform(key, (2,), minval=low, maxval=high)
    return {"identity_scale": identity, "expression_scale": expression}
