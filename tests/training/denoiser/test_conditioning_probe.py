"""The guard: gaps are zero where a condition cannot act, open where it is learned, are plotted, and warn."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.toy_images import E, G, Toys, toy_batch

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import FlowConfig, MeshConfig, to_json
from genaffect_jax.data.loader import make_loader
from genaffect_jax.diffusion.schedule import shift_sigma
from genaffect_jax.errors import DataError
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.conditioning_probe import (
    ConditioningProbe,
    held_out_batch,
    noise_levels,
    other_expressions,
)
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.denoiser.probe_report import ProbeReport, ignored, plot_probe, probe_rows
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.loop import fit
from genaffect_jax.training.metric_log import read_rows
from genaffect_jax.training.task import Task


@pytest.fixture(scope="module")
def networks(tiny_model):
    return build_networks(dataclasses.replace(tiny_model, prediction="x0"))


@pytest.fixture(scope="module")
def probe(networks):
    return ConditioningProbe(FlowConfig(), *networks, {}, toy_batch(0), make_mesh(MeshConfig(), jax.devices()[:1]))


def measurements(workdir):
    return probe_rows(read_rows(RunDir(workdir).metrics))


def learn(tiny_config, networks, probe, workdir, steps):
    """Trains on toys; returns what was printed."""
    flow = FlowConfig()
    train = dataclasses.replace(
        tiny_config.train,
        steps=steps,
        probe_every=10,
        log_every=15,
        learning_rate=0.01,
        schedule="constant",
        ema_decay=0.8,
    )
    text = io.StringIO()
    task = Task(
        functional=networks[0],
        loss=make_denoiser_loss(flow, networks[1]),
        frozen_components={},
        batches=Toys(),
        images_per_step=G * E,
        preview=lambda _: np.zeros((8, 8, 3), np.uint8),
        config=to_json(tiny_config),
        probe=probe,
    )
    fit(task, train, make_mesh(MeshConfig(), jax.devices()[:1]), RunDir(workdir), Console(file=text, width=200))
    return text.getvalue()


def test_at_the_start_both_differences_are_exactly_zero(networks, probe):
    values = probe.measure(networks[0].init(jax.random.key(0)))
    assert values["eval/loss"] > 0
    assert [values[f"probe/{name}"] for name in ("identity", "expression")] == [0.0, 0.0]


def test_gaps_open_where_both_conditions_are_learned_and_a_continued_run_plots_all_of_itself(
    tiny_config, networks, probe, tmp_path
):
    printed = learn(tiny_config, networks, probe, tmp_path, 30)
    programs = probe.program._cache_size()
    printed += learn(tiny_config, networks, probe, tmp_path, 60)
    assert probe.program._cache_size() == programs, "one program measures every step, also of a continued run"
    rows = measurements(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["probe/identity_relative"] > 0.05
    assert rows[-1]["probe/expression_relative"] > 0.05
    assert "ignores" not in printed
    # Steps 30 and 60 are logged and measured at once: one row each, with both kinds of numbers.
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert "loss" in rows[-1]
    with Image.open(tmp_path / "probe.png") as plot:
        assert plot.width > 400


def test_a_denoiser_that_cannot_hear_the_expression_warns_of_it_and_only_of_it(tiny_config, networks, probe, tmp_path):
    class Deaf:
        rating, report, plot = probe.rating, probe.report, probe.plot

        def measure(self, parameters):
            branch = [n for n in parameters if n.startswith("mmdit.") and ".expression." in n]
            assert branch
            return probe.measure({**parameters, **{name: jax.numpy.zeros_like(parameters[name]) for name in branch}})

    printed = learn(tiny_config, networks, Deaf(), tmp_path, 40)
    assert [row["probe/expression"] for row in measurements(tmp_path)] == [0.0] * 4
    assert printed.count("the denoiser ignores the expression") == 1
    assert "flow.drop_expression" in printed
    assert "ignores the identity" not in printed


def test_the_program_follows_the_loss_it_is_compared_with(networks, probe):
    """The right loss, computed again without the guard: same noise, same levels, same conditions."""
    import jax.numpy as jnp

    from genaffect_jax.diffusion import flow

    denoiser = networks[0]
    rng = np.random.default_rng(0)
    parameters = {name: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype) for name, s in denoiser.shapes.items()}
    batch = toy_batch(0)

    @jax.jit
    def loss(parameters, reference, expression):
        model = denoiser.merge(parameters)
        conditions = model.encode_conditions(reference, jnp.ones((G, 1), bool), expression)
        errors = []
        for i, sigma in enumerate(noise_levels(FlowConfig(), 4)):
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), batch["target"].shape)
            sigma = jnp.full((G, E), sigma)
            noisy = flow.interpolate(batch["target"], noise, sigma)
            errors.append(jnp.mean((model(noisy, sigma, conditions).prediction - (noise - batch["target"])) ** 2))
        return jnp.mean(jnp.stack(errors))

    right = float(loss(parameters, batch["reference"], batch["expression"]))
    other_person = float(loss(parameters, np.roll(batch["reference"], 1, 0), batch["expression"]))
    other_expression = float(loss(parameters, batch["reference"], batch["expression"][:, ::-1]))
    values = probe.measure(parameters)
    assert values["eval/loss"] == pytest.approx(right, rel=1e-4)
    assert values["probe/identity"] == pytest.approx(other_person - right, rel=1e-2, abs=1e-4 * right)
    assert values["probe/expression"] == pytest.approx(other_expression - right, rel=1e-2, abs=1e-4 * right)
    assert abs(values["probe/identity"]) > 1e-3 * right
    assert abs(values["probe/expression"]) > 1e-3 * right


def test_another_expression_always_differs_and_stays_with_the_person_where_it_can():
    vectors = np.zeros((3, 2, 40), np.float32)
    vectors[0, 0, 0], vectors[1, :, 1] = 1.0, 0.5  # the second person shows one expression twice
    others = other_expressions(vectors)
    assert (others != vectors).any(-1).all()
    np.testing.assert_array_equal(others[0], vectors[0, ::-1])
    np.testing.assert_array_equal(others[1], vectors[[2, 2], [0, 1]])
    with pytest.raises(DataError, match="all 6 held-out images show the same expression"):
        other_expressions(np.ones((3, 2, 40), np.float32))


def test_noise_levels_are_quantiles_of_those_of_training():
    config = FlowConfig(logit_mean=0.5, logit_std=0.8, shift=3.0)
    drawn = shift_sigma(1 / (1 + np.exp(-(0.5 + 0.8 * np.random.default_rng(0).standard_normal(200_000)))), 3.0)
    np.testing.assert_allclose(noise_levels(config, 4), np.quantile(drawn, [1 / 8, 3 / 8, 5 / 8, 7 / 8]), atol=3e-3)


def row(step, identity, expression):
    relative = {"probe/identity_relative": identity, "probe/expression_relative": expression}
    return {"step": step, "eval/loss": 1.0, "probe/identity": identity, "probe/expression": expression, **relative}


def test_a_condition_counts_as_ignored_after_three_low_measurements_past_the_first_quarter():
    low = [row(step, 0.5, 0.001) for step in (100, 200, 300, 400)]
    assert ignored(low[:2], 800) == []
    assert ignored(low[:3], 800) == [], "step 100 lies in the first quarter"
    assert ignored(low, 800) == ["expression"]
    assert ignored([*low, row(500, 0.5, 0.02)], 800) == []


def test_a_warning_comes_once_and_again_after_the_condition_was_heard():
    text = io.StringIO()
    report, console = ProbeReport(), Console(file=text, width=200)
    rows = []
    for step, expression in (
        [(s, 0.0) for s in (300, 400, 500)] + [(600, 0.0), (650, 0.1)] + [(s, 0.0) for s in (700, 750, 800)]
    ):
        rows.append(row(step, 0.0 if step == 1 else 0.5, expression))
        report.warn(rows, 800, console)
    assert text.getvalue().count("warning: step 500: the denoiser ignores the expression") == 1
    assert text.getvalue().count("warning: step 800: the denoiser ignores the expression") == 1
    assert text.getvalue().count("warning") == 2


def test_rows_without_finite_values_are_left_out_and_nothing_draws_no_plot(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, row(2, 0.1, 0.1), {**row(3, 0.1, 0.1), "probe/identity_relative": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [r["step"] for r in measurements(tmp_path)] == [2]
    with pytest.raises(ValueError, match="no rows"):
        plot_probe([], tmp_path / "probe.png")
    assert not (tmp_path / "probe.png").exists()


@pytest.mark.usefixtures("one_device")
def test_a_real_run_measures_people_it_does_not_train_on(tiny_config, tmp_path, monkeypatch):
    people = {}

    def recording(kind, function):
        def call(source, names, **options):
            people[kind] = set(names)
            return function(source, names, **options)

        return call

    for function in (make_loader, held_out_batch):
        name = function.__name__
        monkeypatch.setattr(f"genaffect_jax.training.denoiser.task.{name}", recording(name, function))
    config = dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(tiny_config.data, identities=8, holdout=0.4),
        train=dataclasses.replace(tiny_config.train, steps=2, probe_every=2),
    )
    text = io.StringIO()
    assert train_denoiser(config, tmp_path, Console(file=text, width=200))
    assert [r["step"] for r in measurements(tmp_path)] == [2]
    assert (tmp_path / "probe.png").exists()
    assert "conditioning probe" not in text.getvalue()
    trained_on, measured = people["make_loader"], people["held_out_batch"]
    assert len(measured) >= 2
    assert not trained_on & measured
    assert len(trained_on | measured) == 8
