"""`train.deterministic` in a run folder: same bits, the same environment or none, and the way out."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console
from support.training_runs import QUIET, Numbered, assert_equal_ends, final_state, rows, task, with_train

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.xla import is_deterministic
from genaffect_jax.training import loop
from genaffect_jax.training.denoiser import features as denoiser_features
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.loop import fit


@pytest.fixture
def config(tiny_config):
    return with_train(tiny_config, steps=6, schedule="constant", deterministic=True)


def run(config, folder, mesh=None, console=QUIET):
    batches = Numbered()
    fit(task(config, batches), config.train, mesh or make_mesh(MeshConfig()), RunDir(folder), console)
    return batches


def test_a_continued_run_equals_an_uninterrupted_one_and_one_without_the_promise(config, tmp_path):
    run(config, tmp_path / "whole")
    run(with_train(config, steps=3), tmp_path / "parts")
    run(config, tmp_path / "parts")
    assert_equal_ends(config, tmp_path / "parts", tmp_path / "whole")
    run(with_train(config, deterministic=False), tmp_path / "usual")  # on CPUs the programs are the same
    assert_equal_ends(config, tmp_path / "usual", tmp_path / "whole")
    assert [RunDir(tmp_path / name).environment.exists() for name in ("whole", "parts", "usual")] == [True, True, False]


def test_another_mesh_stops_a_deterministic_run_before_its_first_step(config, tmp_path):
    run(with_train(config, steps=3), tmp_path)
    before = final_state(config, tmp_path)[0]
    other = make_mesh(MeshConfig(fsdp=8))
    with pytest.raises(ConfigError, match=r"mesh\.data was 8, is 1; mesh\.fsdp was 1, is 8"):
        run(config, tmp_path, other)
    assert rows(tmp_path)[-1]["step"] == 3
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(final_state(config, tmp_path)[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    run(with_train(config, deterministic=False), tmp_path, other)
    assert rows(tmp_path)[-1]["step"] == 6


def test_what_is_promised_is_said(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "unmeasured", lambda mesh: "not measured here")
    with (tmp_path / "out").open("w") as file:
        run(config, tmp_path / "run", console=Console(file=file, width=200))
        run(with_train(config, deterministic=False, steps=8), tmp_path / "run", console=Console(file=file, width=200))
    said = (tmp_path / "out").read_text()
    assert "deterministic from step 0 on: the environment is recorded in environment.json" in said
    assert said.count("warning: not measured here") == 1
    assert "train.deterministic is off from step 6 on" in said


def test_the_option_may_change_within_a_run_folder(config, tmp_path):
    for on in (True, False, True):
        RunDir.create(tmp_path, with_train(config, deterministic=on))


@pytest.mark.usefixtures("one_device")
def test_the_features_of_a_deterministic_run_are_computed_by_deterministic_programs(config, tmp_path, monkeypatch):
    seen = []

    def options():
        seen.append(is_deterministic())
        return {}

    monkeypatch.setattr(denoiser_features, "deterministic_options", options)
    cached = dataclasses.replace(config.data, cache_latents=True)
    train_denoiser(with_train(dataclasses.replace(config, data=cached), steps=1), tmp_path, QUIET)
    assert seen == [True]
    assert not is_deterministic()
