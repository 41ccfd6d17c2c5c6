"""The loop: exact resume, Ctrl-C, logs, and a run folder that protects its run."""

import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console
from support.devices import first_device
from support.training_runs import QUIET, Interrupting, Numbered, final_state, rows, task, with_train
from support.xla_flags import xla_flags

from genaffect_jax import train
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, MeshConfig, from_json
from genaffect_jax.errors import CheckpointError, DataError, TrainingError
from genaffect_jax.io.lock import locked
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.loop import fit, utilisation
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state


@pytest.fixture(scope="module")
def steady(tiny_config):
    """A run with cached latents, whose rate does not depend on its number of steps."""
    cached = dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, cache_latents=True))
    return with_train(cached, schedule="constant")


@pytest.fixture(scope="module")
def whole(steady, tmp_path_factory):
    """The folder of a run of `steady` that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert train_denoiser(steady, folder, QUIET)
    return folder


def denoiser_state(config, workdir):
    denoiser, _ = build_networks(config.model)
    mesh = make_mesh(MeshConfig())
    return Checkpoints(workdir).restore(abstract_state(denoiser, make_optimizer(config.train), mesh))


def assert_equal_runs(config, parts, whole):
    """Same state to the bit, same input position, same losses."""
    expected, expected_position = denoiser_state(config, whole)
    found, found_position = denoiser_state(config, parts)
    assert int(found.step) == 4
    assert found_position == expected_position
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    # The first step of a process is its compilation: it is not logged, so each part starts one row later.
    losses = {row["step"]: row["loss"] for row in rows(whole)}
    for row in rows(parts):
        assert row["loss"] == losses[row["step"]]


def test_a_stopped_and_continued_run_equals_an_uninterrupted_one(steady, whole, tmp_path):
    assert train_denoiser(with_train(steady, steps=2), tmp_path, QUIET)
    assert train_denoiser(with_train(steady, steps=4), tmp_path, QUIET)
    assert_equal_runs(steady, tmp_path, whole)


@pytest.mark.usefixtures("one_device")
def test_a_run_that_reads_images_continues_from_an_older_checkpoint_to_the_same_end(steady, tmp_path):
    config = dataclasses.replace(steady, data=dataclasses.replace(steady.data, cache_latents=False))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_denoiser(with_train(config, checkpoint_every=2), whole, QUIET)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")
    assert train_denoiser(config, parts, QUIET)
    assert_equal_runs(config, parts, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint_that_continues(tiny_config, tmp_path, number):
    mesh = make_mesh(MeshConfig())
    config = with_train(tiny_config, steps=6)
    before = signal.getsignal(number)
    assert not fit(task(config, Interrupting(number)), config.train, mesh, RunDir(tmp_path), QUIET)
    assert signal.getsignal(number) == before
    state, position = final_state(config, tmp_path)
    assert (int(state.step), position) == (3, {"fetched": 3})

    batches = Interrupting(number)
    assert fit(task(config, batches), config.train, mesh, RunDir(tmp_path), QUIET)
    assert batches.fetched == 6
    assert Checkpoints(tmp_path).latest_step() == 6
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6


def broken_at(steps):
    """A loss that is not finite in some steps, which it knows by the number in the batch."""

    def loss(model, frozen_components, batch, key):
        bad = jax.numpy.isin(batch["target"].ravel()[0], jax.numpy.array(steps, float))
        value = jax.numpy.sum(model.up.kernel[...] ** 2 + model.up.kernel[...])
        return {"loss": (jax.numpy.where(bad, jax.numpy.nan, 1.0) * value, jax.numpy.ones(()))}

    return loss


def test_many_steps_in_a_row_that_are_not_finite_end_the_run_with_advice(tiny_config, tmp_path):
    config = with_train(tiny_config, steps=9, log_every=2, max_consecutive_skips=4)
    broken = task(config, Numbered(), broken_at([2, 4, 5, 6, 7]))
    with pytest.raises(
        TrainingError,
        match=r"step 7: loss nan, gradient norm nan, for 4 consecutive steps; all were "
        r"skipped\. Lower train\.learning_rate",
    ):
        fit(broken, config.train, make_mesh(MeshConfig()), RunDir(tmp_path), QUIET)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tiny_config, tmp_path):
    config = with_train(tiny_config, steps=6, log_every=2, max_consecutive_skips=3, warmup_steps=0, schedule="constant")
    none = [-2, -1]  # no step has these numbers, and the program is that of two bad steps
    numbers = {"all": none, "some": [3, 4]}
    for name, bad in numbers.items():
        folder = tmp_path / name
        fit(task(config, Numbered(), broken_at(bad)), config.train, make_mesh(MeshConfig()), RunDir(folder), QUIET)
    logged = {row["step"]: row for row in rows(tmp_path / "some")}
    assert [logged[step].get("skipped_steps") for step in (2, 4, 6)] == [None, 2.0, None]
    assert logged[4]["loss"] is None
    # Four good steps of six are the first four steps of a run without bad ones.
    short = with_train(config, steps=4)
    fit(
        task(short, Numbered(), broken_at(none)),
        short.train,
        make_mesh(MeshConfig()),
        RunDir(tmp_path / "short"),
        QUIET,
    )
    expected, found = (final_state(c, tmp_path / n)[0] for c, n in ((short, "short"), (config, "some")))
    assert (int(expected.step), int(found.step)) == (4, 6)
    for name, value in expected.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], value)
    for before, after in zip(jax.tree.leaves(expected.optimizer), jax.tree.leaves(found.optimizer), strict=True):
        np.testing.assert_array_equal(after, before)


def test_the_mean_of_a_sparse_term_leaves_out_steps_in_which_no_example_counts(tiny_config, tmp_path):
    config = with_train(tiny_config, steps=7, log_every=3, ema_decay=0.0)

    def loss(model, frozen_components, batch, key):
        number = batch["target"].ravel()[0]
        odd, zero = number % 2, 0.0 * jax.numpy.sum(model.up.kernel[...])
        terms = dict.fromkeys(("often", "always"), (odd * number, odd))
        return {"loss": (1.0 + zero, jax.numpy.ones(())), **terms}

    run = dataclasses.replace(task(config, Numbered(), loss), sparse_terms=("often",))
    fit(run, config.train, make_mesh(MeshConfig()), RunDir(tmp_path), QUIET)
    logged = {row["step"]: (row["often"], row["always"]) for row in rows(tmp_path)}
    assert logged == {3: (3.0, None), 6: (5.0, None), 7: (7.0, 7.0)}


@pytest.mark.parametrize(("at", "steps", "traced"), [(3, 6, "steps 3 to 5"), (5, 6, None), (0, 3, None)])
def test_a_few_steps_are_profiled_on_request_and_change_nothing(tiny_config, tmp_path, at, steps, traced):
    config = with_train(tiny_config, steps=steps, profile_at=at)
    with (tmp_path / "out").open("w") as file:
        console = Console(file=file, width=400)
        fit(task(config, Numbered()), config.train, make_mesh(MeshConfig()), RunDir(tmp_path / "run"), console)
    said = (tmp_path / "out").read_text()
    assert ("profile of" in said) == (traced is not None)
    assert traced is None or traced in said
    traces = list((tmp_path / "run").rglob("*.xplane.pb"))
    assert len(traces) == (at > 0)  # a run that ends early keeps what it traced
    assert [row["step"] for row in rows(tmp_path / "run")][-1] == steps


def test_the_log_has_loss_rate_gradient_norm_and_throughput(whole):
    for row in rows(whole):
        assert row["images_per_second"] > 0
        assert row["tflops_per_device"] > 0
        assert row["gradient_norm"] > 0
        assert row["learning_rate"] >= 0
        assert np.isfinite(row["loss"])
    assert list((whole / "tensorboard").iterdir())
    assert (whole / "sheets" / "0000004.png").exists()


def test_the_utilisation_is_of_the_peak_of_devices_that_are_known():
    def mesh(kind, count=2):
        return SimpleNamespace(size=count, devices=np.array([SimpleNamespace(device_kind=kind)] * count))

    found = utilisation(989e12, "bfloat16", mesh("NVIDIA H100 80GB HBM3"))
    assert found == {"tflops_per_device": pytest.approx(494.5), "model_flops_utilisation": pytest.approx(0.5)}
    assert utilisation(918e12, "bfloat16", mesh("TPU v6 lite", 1))["model_flops_utilisation"] == pytest.approx(1.0)
    assert "model_flops_utilisation" not in utilisation(1e12, "float32", mesh("NVIDIA H100 80GB HBM3"))
    assert "model_flops_utilisation" not in utilisation(1e12, "bfloat16", mesh("cpu"))


def test_the_configuration_lies_beside_the_checkpoint_and_rebuilds_the_model(steady, whole):
    checkpoints = Checkpoints(whole)
    config = from_json(DenoiserRun, checkpoints.config())
    assert config == steady
    denoiser, _ = build_networks(config.model)
    parameters = checkpoints.averaged_parameters(denoiser, make_mesh(MeshConfig()))
    assert parameters.keys() == denoiser.shapes.keys()


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint found"):
        Checkpoints(tmp_path).config()


@pytest.mark.slow
def test_ctrl_c_on_the_command_ends_with_status_130_and_the_same_command_continues(preset, tmp_path):
    config, workdir = preset(train={"steps": 100_000, "checkpoint_every": 100_000}), tmp_path / "run"
    command = [sys.executable, "-m", "genaffect_jax.train", "--config", str(config), "--workdir", str(workdir)]
    command += ["--data.workers", "1"]
    options = {"env": {**os.environ, "XLA_FLAGS": xla_flags(devices=1)}, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options, start_new_session=True) as process:
        lines = itertools.takewhile(lambda line: "step 3/" not in line, process.stderr)
        output = "".join(lines)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole process group
        output += process.communicate(timeout=120)[1]
    assert process.returncode == 130, output
    assert "Traceback" not in output
    step = Checkpoints(workdir).latest_step()
    assert step >= 3
    finished = subprocess.run([*command, "--train.steps", str(step + 2)], **options, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert f"continuing at step {step} of {step + 2}" in finished.stderr
    assert Checkpoints(workdir).latest_step() == step + 2


def test_a_run_folder_takes_one_training_at_a_time(preset, tmp_path, capsys):
    config, workdir = preset(train={"steps": 1}), tmp_path / "runs" / "run"
    command = ["--config", str(config), "--workdir", str(workdir)]
    workdir.mkdir(parents=True)
    with locked(workdir):
        assert train.main(command) == 1
    error = capsys.readouterr().err
    assert re.search(rf"error: .*run: in use by process {os.getpid()} on .* wait until it has ended", error)
    assert list(workdir.iterdir()) == []
    # A start that writes nothing leaves no folder, and no lock.
    wrong = [*command[:3], str(tmp_path / "other"), "--data.source", "folder", "--data.root", str(tmp_path / "nowhere")]
    assert train.main(wrong) == 1
    assert not (tmp_path / "other").exists()
    (workdir / ".genaffect.lock").write_text('{"host": "elsewhere", "pid": 1}')  # left by a killed process
    with first_device():
        assert train.main(command) == 0
    assert not (workdir / ".genaffect.lock").exists()


@pytest.mark.slow
def test_a_terminal_that_closes_with_nobody_left_to_read_costs_no_step(preset, tmp_path):
    config, workdir = preset(train={"steps": 100_000, "checkpoint_every": 100_000}), tmp_path / "run"
    command = [sys.executable, "-m", "genaffect_jax.train", "--config", str(config), "--workdir", str(workdir)]
    command += ["--data.workers", "1"]
    options = {"env": {**os.environ, "XLA_FLAGS": xla_flags(devices=1)}, "stderr": subprocess.PIPE, "text": True}

    def heard() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may be under nohup

    with subprocess.Popen(command, **options, start_new_session=True, preexec_fn=heard) as process:
        try:
            assert any("step 3/" in line for line in process.stderr)
            process.stderr.close()  # as `| head` does; a row is printed at every step
            deadline = time.monotonic() + 60
            while len((workdir / "metrics.jsonl").read_text().splitlines()) < 8 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert process.poll() is None  # it goes on unheard
            os.killpg(process.pid, signal.SIGHUP)
            assert process.wait(timeout=120) == 130
        finally:
            process.kill()
    assert Checkpoints(workdir).latest_step() >= 7


def test_a_finished_run_says_so_and_does_nothing(tiny_config, tmp_path):
    config = with_train(tiny_config, steps=2)
    assert fit(task(config, Numbered()), config.train, make_mesh(MeshConfig()), RunDir(tmp_path / "run"), QUIET)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*") if f.is_file()}
    with (tmp_path / "out").open("w") as file:
        assert fit(
            task(config, Numbered()),
            config.train,
            make_mesh(MeshConfig()),
            RunDir(tmp_path / "run"),
            Console(file=file),
        )
    assert "already finished: step 2 of 2" in (tmp_path / "out").read_text()
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*") if f.is_file()}


def test_a_folder_of_images_that_is_not_there_claims_no_run_folder(tiny_config, tmp_path):
    data = dataclasses.replace(tiny_config.data, source="folder", root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere: no such folder \(data\.root\)"):
        train_denoiser(dataclasses.replace(tiny_config, data=data), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
