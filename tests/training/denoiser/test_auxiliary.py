"""Auxiliary losses: read only what is asked for, count only low noise, and train the denoiser alone."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import AuxiliaryConfig, FlowConfig
from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.errors import ConfigError
from genaffect_jax.io.weight_file import load_weights, save_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.face_encoders.encoder import build_encoder
from genaffect_jax.training.denoiser.auxiliary import EXPRESSION_TERM, IDENTITY_TERM, load_auxiliary
from genaffect_jax.training.denoiser.loss import make_denoiser_loss

SMALL = {"image_size": 16, "widths": (8, 8), "depths": (0, 0), "norm_num_groups": 4, "hidden": 8, "neck": 4}
G, E = 4, 2
FLOW = FlowConfig(drop_identity=0.3, drop_expression=0.3)
KEYS = jax.random.split(jax.random.key(0), G)  # with them some examples of low noise have lost each condition


def save(folder, target, width, name):
    config = FaceEncoderConfig(target=target, width=width, **SMALL)
    rng = np.random.default_rng(0)
    parameters = {
        key: jnp.asarray(rng.standard_normal(s.shape) * np.prod(s.shape[:-1]) ** -0.5 + key.endswith("scale"))
        for key, s in build_encoder(config).shapes.items()
    }
    path = folder / f"{name}.safetensors"
    save_weights(parameters, path, "float32", config, {"name": name, "licence": "Apache-2.0"})
    return str(path)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "identity_encoder": save(folder, "identity", 12, "who"),
        "expression_encoder": save(folder, "expression", 40, "what"),
    }


@pytest.fixture(scope="module")
def world(tiny_model):
    """Networks, parameters and a batch; the denoiser has left its start, so that its branches act."""
    denoiser, autoencoder = build_networks(dataclasses.replace(tiny_model, prediction="x0"))
    rng = np.random.default_rng(0)
    parameters = {
        name: jnp.asarray(0.1 * rng.standard_normal(s.shape) + name.endswith("scale"), s.dtype)
        for name, s in denoiser.shapes.items()
    }
    batch = {
        "reference": rng.standard_normal((G, 1, 8, 8, 4), np.float32),
        "target": rng.standard_normal((G, E, 8, 8, 4), np.float32),
        "expression": rng.random((G, E, 40), np.float32),
    }
    return denoiser, autoencoder, parameters, load_weights(autoencoder, Path(tiny_model.autoencoder_weights)), batch


def objective_of(world, auxiliary):
    """Value, terms and gradient as a jitted function of the denoiser's parameters and the frozen ones."""
    denoiser, autoencoder, _, _, batch = world
    loss = make_denoiser_loss(FLOW, autoencoder, auxiliary)

    def objective(parameters, frozen_components):
        terms = loss(denoiser.merge(parameters), frozen_components, batch, KEYS)
        total, count = terms["loss"]
        return total / count, terms

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


@pytest.fixture(scope="module")
def plain(world):
    (value, _), gradient = objective_of(world, None)(world[2], {"autoencoder": world[3]})
    return value, gradient


@pytest.fixture(scope="module")
def run(world, encoders):
    """Value, terms and gradient with auxiliary losses; their numbers are arguments, so one program serves all."""
    losses = load_auxiliary(AuxiliaryConfig(identity_weight=1.0, expression_weight=1.0, **encoders), 40)

    @jax.jit
    def program(numbers, parameters, frozen_components):
        traced = dataclasses.replace(losses, config=SimpleNamespace(**numbers))
        return objective_of(world, traced)(parameters, frozen_components)

    def run(**numbers):
        (value, terms), gradient = program(
            numbers, world[2], {"autoencoder": world[3], "auxiliary": losses.frozen_components()}
        )
        return value, terms, gradient

    return run


def test_with_weights_zero_no_encoder_is_read_and_with_one_weight_only_its_own():
    missing = {"identity_encoder": "no/such/file", "expression_encoder": "no/such/file"}
    assert load_auxiliary(AuxiliaryConfig(**missing), 40) is None


def test_with_one_weight_only_its_encoder_is_read(encoders):
    config = AuxiliaryConfig(identity_weight=1.0, **{**encoders, "expression_encoder": "no/such/file"})
    losses = load_auxiliary(config, 40)
    assert losses.expression is None
    assert set(losses.frozen_components()) == {"identity"}


def test_examples_above_the_noise_level_leave_loss_and_gradient_as_they_were(plain, run):
    value, terms, gradient = run(identity_weight=1.0, expression_weight=1.0, largest_sigma=1e-6)
    assert [float(terms[name][1]) for name in (IDENTITY_TERM, EXPRESSION_TERM)] == [0.0, 0.0]
    assert float(value) == pytest.approx(float(plain[0]), rel=1e-6)
    for name, expected in plain[1].items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_terms_count_low_noise_with_the_condition_and_their_gradient_reaches_the_branches(plain, run):
    value, terms, gradient = run(identity_weight=0.5, expression_weight=2.0, largest_sigma=0.5)
    sigma_keys, _, drop_keys = zip(*(jax.random.split(key, 3) for key in KEYS), strict=True)
    near = np.stack([flow.sample_sigma(key, (E,), FLOW) for key in sigma_keys]) <= 0.5
    drops = [flow.sample_drops(key, 1, E, FLOW) for key in drop_keys]
    drop_identity, drop_expression, _ = (np.concatenate(drop) for drop in zip(*drops, strict=True))
    assert 0 < near.sum() < near.size
    assert (near & drop_identity[:, None]).any()
    assert (near & drop_expression).any()
    means = {name: float(terms[name][0] / terms[name][1]) for name in (IDENTITY_TERM, EXPRESSION_TERM)}
    assert float(terms[IDENTITY_TERM][1]) == (near & ~drop_identity[:, None]).sum()
    assert float(terms[EXPRESSION_TERM][1]) == (near & ~drop_expression).sum()
    added = 0.5 * means[IDENTITY_TERM] + 2.0 * means[EXPRESSION_TERM]
    assert float(value) == pytest.approx(float(plain[0]) + added, rel=1e-4)
    moved = [n for n in gradient if np.abs(gradient[n] - plain[1][n]).max() > 1e-6]
    for part in ("mmdit", "identity_projector", "expression_projector"):
        assert any(part in name for name in moved), part


def test_the_distances_of_a_perfect_prediction_are_zero_and_of_the_encoders_error(world, encoders):
    _, autoencoder, _, images, batch = world
    losses = load_auxiliary(AuxiliaryConfig(identity_weight=1.0, expression_weight=1.0, **encoders), 40)
    perfect = jnp.repeat(batch["reference"], E, axis=1)
    kept = jnp.zeros((G,), bool), jnp.zeros((G, E), bool)

    @jax.jit
    def run(images, frozen_components, perfect):
        network = autoencoder.merge(images)
        read = losses.expression.network.merge(frozen_components["expression"])(
            network.decode(network.unscaled(perfect))
        )
        wanted = read + 0.25
        return losses.terms(network, frozen_components, perfect, jnp.zeros((G, E)), batch["reference"], wanted, *kept)

    terms = run(images, losses.frozen_components(), perfect)
    assert float(terms[IDENTITY_TERM][0] / terms[IDENTITY_TERM][1]) == pytest.approx(0.0, abs=1e-5)
    assert float(terms[EXPRESSION_TERM][0] / terms[EXPRESSION_TERM][1]) == pytest.approx(0.25, abs=1e-5)


def test_evaluators_and_other_widths_are_refused_by_name(tmp_path, encoders):
    judge = save(tmp_path, "identity", 12, "identity_evaluator")
    copy = Path(judge).rename(tmp_path / "innocent.safetensors")
    with pytest.raises(ConfigError, match=r"innocent\.safetensors: identity_evaluator is an evaluator"):
        load_auxiliary(AuxiliaryConfig(identity_weight=1.0, identity_encoder=str(copy)), 40)
    with pytest.raises(ConfigError, match=r"gives 40 numbers, conditioning\.expression_width is 16"):
        load_auxiliary(AuxiliaryConfig(expression_weight=1.0, **encoders), 16)


def test_numbers_out_of_range_are_refused():
    for wrong in ({"identity_weight": -1.0}, {"expression_weight": -0.1}, {"largest_sigma": 0.0}):
        with pytest.raises(ConfigError, match=f"auxiliary.{next(iter(wrong))}"):
            AuxiliaryConfig(**wrong)
