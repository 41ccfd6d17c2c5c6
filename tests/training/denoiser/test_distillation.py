"""A student learns where its teacher's guided steps lead, and its run folder is that of any denoiser."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from genaffect_jax import Pipeline
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, DistillationConfig, MeshConfig, from_json
from genaffect_jax.diffusion import flow
from genaffect_jax.diffusion.guidance import branch_drops, guided, repeat_branches
from genaffect_jax.diffusion.sampler import sample
from genaffect_jax.diffusion.schedule import euler_sigmas, shift_sigma
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.batch import batch_conditions
from genaffect_jax.training.denoiser.distillation import TEACHER, draw_step, make_distillation_loss, teacher_end
from genaffect_jax.training.denoiser.task import train_denoiser

G, E = 2, 3


@pytest.fixture(scope="module")
def teacher(trained_workdir):
    """The run and the averaged parameters of the trained tiny model."""
    config = from_json(DenoiserRun, RunDir(trained_workdir).config.read_text())
    network = build_networks(config.model)[0]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return config, network, Checkpoints(trained_workdir).averaged_parameters(network, mesh)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "reference": rng.standard_normal((G, 1, 8, 8, 4), np.float32),
        "target": rng.standard_normal((G, E, 8, 8, 4), np.float32),
        "expression": rng.random((G, E, 40), np.float32),
    }


def with_distillation(config, **fields):
    return dataclasses.replace(config, distillation=DistillationConfig(**fields))


@pytest.mark.parametrize(("identity", "expression"), [(1.0, 1.0), (1.0, 1.5), (2.0, 3.0)])
def test_the_end_of_a_step_is_where_the_guided_sampler_arrives(teacher, batch, identity, expression):
    config, network, parameters = teacher
    config = with_distillation(
        config, steps=3, teacher_steps=4, guidance_identity=identity, guidance_expression=expression
    )
    mode, shift = config.distillation.mode, config.flow.shift
    model = network.merge(parameters)
    levels = euler_sigmas(3, shift)
    for place in range(3):
        step = draw_step(config, batch["target"], jax.random.split(jax.random.key(1), G))
        step = step._replace(start=jnp.full((G, E), levels[place]), end=jnp.full((G, E), levels[place + 1]))
        noisy = flow.interpolate(batch["target"], step.noise, step.start)
        found = teacher_end(config, model, {}, batch, batch["reference"], noisy, step, {})

        drops = branch_drops(mode, G, E)
        branches = {name: repeat_branches(jnp.asarray(value), mode) for name, value in batch.items()}
        conditions = batch_conditions(model, {}, branches, branches["reference"], *drops)

        def velocity(latents, sigma, _, carry, conditions=conditions):
            return model(latents, jnp.full(latents.shape[:2], sigma), conditions).prediction, carry

        ends = levels[[place, place + 1]] / (shift - (shift - 1) * levels[[place, place + 1]])
        between = shift_sigma(np.linspace(*ends, 5), shift)
        expected, _ = sample(guided(velocity, mode, identity, expression), noisy, between, 4)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert float(jnp.abs(found - noisy).max()) > 1e-3


def test_a_student_that_steps_like_its_teacher_has_nothing_to_learn(teacher, batch):
    config, network, parameters = teacher
    keys = jax.random.split(jax.random.key(2), G)

    def loss(**fields):
        run = with_distillation(config, **fields)
        terms = make_distillation_loss(run, network, None)(
            network.merge(parameters), {TEACHER: parameters}, batch, keys
        )
        return {name: float(total / count) for name, (total, count) in terms.items()}

    same = loss(teacher_steps=1, guidance_expression=1.0)
    assert max(same.values()) < 1e-9
    scaled = loss(teacher_steps=1, guidance_expression=1.0, scales=(0.5, 0.5))
    assert max(scaled.values()) < 1e-9
    assert loss(teacher_steps=4, guidance_expression=1.0)["loss"] > 1e-6
    assert loss(teacher_steps=1, guidance_expression=2.0)["loss"] > 1e-6


def test_no_gradient_reaches_the_teacher(teacher, batch):
    config, network, parameters = teacher
    run = with_distillation(config, teacher_steps=2)
    keys = jax.random.split(jax.random.key(2), G)

    def loss(student, teacher):
        total, count = make_distillation_loss(run, network, None)(
            network.merge(student), {TEACHER: teacher}, batch, keys
        )["loss"]
        return total / count

    of_student, of_teacher = jax.grad(loss, (0, 1))(parameters, parameters)
    assert any(float(jnp.abs(g).max()) > 0 for g in of_student.values())
    assert all(float(jnp.abs(g).max()) == 0 for g in of_teacher.values())


def test_images_of_a_set_step_apart_unless_they_share(teacher, batch):
    config, _, _ = teacher
    keys = jax.random.split(jax.random.key(0), 64)
    target = jnp.zeros((64, E, 8, 8, 4))
    run = with_distillation(config, steps=4)
    apart = draw_step(run, target, keys)
    assert {float(x) for x in np.unique(apart.start)} == {float(x) for x in euler_sigmas(4, run.flow.shift)[:-1]}
    assert (apart.start > apart.end).all()
    assert (apart.start != apart.start[:, :1]).any()
    sharing = dataclasses.replace(run, flow=dataclasses.replace(run.flow, consistency=0.5))
    together = draw_step(sharing, target, keys)
    assert (together.start == together.start[:, :1]).all()


@pytest.fixture
def student(trained_workdir, one_device):
    config = from_json(DenoiserRun, RunDir(trained_workdir).config.read_text())
    train = dataclasses.replace(config.train, steps=3, learning_rate=1e-4, checkpoint_every=100)
    return dataclasses.replace(
        config, distillation=DistillationConfig(teacher=trained_workdir, steps=2, teacher_steps=2), train=train
    )


def run(config, folder):
    assert train_denoiser(config, folder, Console(quiet=True))


def test_a_student_begins_as_its_teacher_continues_without_it_and_samples(student, trained_workdir, teacher, tmp_path):
    network, parameters = teacher[1:]
    run(student, tmp_path / "student")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found = Checkpoints(tmp_path / "student").averaged_parameters(network, mesh)
    differences = [float(jnp.abs(found[name] - parameters[name]).max()) for name in parameters]
    assert 0 < max(differences) < 0.01  # three small steps from the teacher
    # The run folder holds its own copy: the teacher may move, but only the same teacher.
    moved = tmp_path / "moved"
    shutil.copytree(trained_workdir, moved)
    longer = dataclasses.replace(
        student,
        distillation=dataclasses.replace(student.distillation, teacher=moved),
        train=dataclasses.replace(student.train, steps=4),
    )
    run(longer, tmp_path / "student")
    assert Checkpoints(tmp_path / "student").latest_step() == 4
    other = dataclasses.replace(
        longer, distillation=dataclasses.replace(longer.distillation, teacher=tmp_path / "student")
    )
    with pytest.raises(ConfigError, match=r"distillation\.teacher.*another content"):
        run(other, tmp_path / "student")
    images = Pipeline.load(tmp_path / "student")("seed:7", "joy", steps=2, guidance_expression=1.0).images
    assert images.shape == (1, 32, 32, 3)


def test_a_teacher_of_another_model_or_with_other_components_is_named(student, tmp_path, trained_workdir):
    nowhere = dataclasses.replace(student.distillation, teacher=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"^distillation\.teacher=.*nowhere: no run folder"):
        run(dataclasses.replace(student, distillation=nowhere), tmp_path / "a")
    wider = dataclasses.replace(
        student.model, conditioning=dataclasses.replace(student.model.conditioning, expression_tokens=3)
    )
    with pytest.raises(ConfigError, match=r"^distillation\.teacher=.*these differ: model\.conditioning"):
        run(dataclasses.replace(student, model=wider), tmp_path / "b")
    changed = tmp_path / "changed"
    shutil.copytree(trained_workdir, changed)
    RunDir(changed).autoencoder.write_bytes(b"another")
    other = dataclasses.replace(student.distillation, teacher=changed)
    with pytest.raises(ConfigError, match=r"these differ: autoencoder\.safetensors"):
        run(dataclasses.replace(student, distillation=other), tmp_path / "c")
    for folder in "abc":
        assert not RunDir(tmp_path / folder).teacher.exists()
    assert json.loads(RunDir(tmp_path / "c").config.read_text())["distillation"]["teacher"] == str(changed)
