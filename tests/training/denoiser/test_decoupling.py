"""A trained model keeps the two conditions apart: exchanging one, or guiding by it, changes its own part only.

The images are toys in which the parts can be told apart by construction (`toy_images`). The model learns them with
training's own step and draws people whom it has not seen with sampling's own loop.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.toy_images import E, G, toy_batch

from genaffect_jax.config import FlowConfig, MeshConfig, TrainConfig
from genaffect_jax.diffusion.guidance import branch_drops, guided, repeat_branches
from genaffect_jax.diffusion.sampler import sample
from genaffect_jax.diffusion.schedule import padded_sigmas
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import create_state
from genaffect_jax.training.step import device_batch, make_train_step

STEPS, BATCHES = 500, 2
# Mostly high noise, where nothing but the conditions says what to draw.
FLOW = FlowConfig(logit_mean=1.5)
PERSON, EXPRESSION = slice(1, None), slice(0, 1)
LEAKED = 0.15  # largest change of the other part, as a share of its distances; five trainings had up to 0.08


@pytest.fixture(scope="module")
def trained(tiny_model):
    """The tiny model after some 15 s of training: its network and its averaged parameters."""
    denoiser, autoencoder = build_networks(dataclasses.replace(tiny_model, prediction="x0"))
    config = TrainConfig(steps=STEPS, learning_rate=0.004, warmup_steps=20, weight_decay=0.0, ema_decay=0.9)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config)
    state = create_state(denoiser, optimizer, mesh, config.seed, {})
    loss = make_denoiser_loss(FLOW, autoencoder)
    step = make_train_step(denoiser, loss, optimizer, ema_decay=config.ema_decay, seed=config.seed, mesh=mesh)
    for number in range(STEPS):
        batches = [toy_batch(1 + BATCHES * number + i) for i in range(BATCHES)]
        batch = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        state, _ = step(state, {}, device_batch(batch, mesh))
    return denoiser, state.averaged


@pytest.fixture(scope="module")
def draw(trained):
    """draw(parameters, reference, expression, guidance of identity, of expression): clean latents of a held-out set."""
    denoiser, _ = trained
    noise = jax.random.normal(jax.random.key(5), (G, E, 8, 8, 4))

    @jax.jit
    def program(parameters, reference, expression, guidance_identity=1.0, guidance_expression=1.0):
        model, mode = denoiser.merge(parameters), "decoupled"
        reference, expression = repeat_branches(reference, mode), repeat_branches(expression, mode)
        present = jnp.ones(reference.shape[:2], bool)
        conditions = model.encode_conditions(reference, present, expression, *branch_drops(mode, G, E))

        def velocity(latents, sigma, evaluation, memory):
            return model(latents, jnp.full(latents.shape[:2], sigma), conditions).prediction, memory

        follow = guided(velocity, mode, guidance_identity, guidance_expression)
        return sample(follow, noise, padded_sigmas(8, 1.0), 8)[0]

    return lambda *arguments: np.asarray(program(*arguments))


def size(x, part):
    return float(np.abs(x[..., part]).mean())


def distances():
    """How far people, and expressions, are apart in the images."""
    target = toy_batch(0)["target"]
    return size(np.roll(target, 1, axis=0) - target, PERSON), size(target[:, ::-1] - target, EXPRESSION)


def responses(drawn_by):
    """What exchanging each condition does to its own part and to the other one.

    `followed`: the change of the own part as a multiple of the wanted one (least squares): 1 in a perfect model, 0 in
    one that ignores the condition. `leaked`: the change of the other part, as a share of its distances.
    """
    batch = toy_batch(0)  # training begins at 1
    reference, expression, target = (batch[name] for name in ("reference", "expression", "target"))
    base = drawn_by(reference, expression)
    person = drawn_by(np.roll(reference, 1, axis=0), expression) - base
    face = drawn_by(reference, expression[:, ::-1]) - base
    wanted_person, wanted_face = np.roll(target, 1, axis=0) - target, target[:, ::-1] - target
    people_apart, faces_apart = distances()

    def followed(change, wanted, part):
        return float((change[..., part] * wanted[..., part]).sum() / (wanted[..., part] ** 2).sum())

    return {
        "identity followed": followed(person, wanted_person, PERSON),
        "identity leaked": size(person, EXPRESSION) / faces_apart,
        "expression followed": followed(face, wanted_face, EXPRESSION),
        "expression leaked": size(face, PERSON) / people_apart,
    }


def without(branch, parameters):
    """The parameters of a model in which one branch is deaf."""
    return {n: jnp.zeros_like(v) if n.startswith("mmdit.") and f".{branch}." in n else v for n, v in parameters.items()}


def test_exchanging_a_condition_changes_its_own_part_as_wanted_and_leaves_the_other(trained, draw):
    found = responses(partial(draw, trained[1]))
    for condition in ("identity", "expression"):
        assert found[f"{condition} followed"] == pytest.approx(1.0, abs=0.15), found
        assert found[f"{condition} leaked"] < LEAKED, found


def test_the_figures_tell_models_that_ignore_or_entangle_their_conditions(trained, draw):
    """Models that the test above must not accept."""
    for deaf, heard in (("identity", "expression"), ("expression", "identity")):
        found = responses(partial(draw, without(deaf, trained[1])))
        assert found[f"{deaf} followed"] == 0.0
        assert found[f"{heard} followed"] > 0.7

    def entangled(reference, expression):
        drawn = draw(trained[1], reference, expression)
        face, person = drawn[..., EXPRESSION], drawn[..., PERSON]
        return np.concatenate([face + person.sum(-1, keepdims=True), person + face], axis=-1)

    found = responses(entangled)
    assert min(found["identity leaked"], found["expression leaked"]) > 2 * LEAKED


def test_guidance_of_zero_takes_away_its_own_condition_and_leaves_the_other(trained, draw):
    batch = toy_batch(0)
    given, (people_apart, faces_apart) = (trained[1], batch["reference"], batch["expression"]), distances()
    guided_by_both = draw(*given)
    no_person, no_face = draw(*given, 0.0, 1.0) - guided_by_both, draw(*given, 1.0, 0.0) - guided_by_both
    assert size(no_person, PERSON) / people_apart > 0.5
    assert size(no_person, EXPRESSION) / faces_apart < LEAKED
    assert size(no_face, EXPRESSION) / faces_apart > 0.4
    assert size(no_face, PERSON) / people_apart < LEAKED
