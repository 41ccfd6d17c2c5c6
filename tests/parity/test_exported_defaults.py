"""Exported models are sampled with their own settings where nothing else is asked for, as `Pipeline` samples them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.avatar_runs import save_avatar_run
from support.exported import assert_same_images, load, to_pil
from support.sd3_runs import set_sampling

from genaffect_jax import Pipeline
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import SamplingDefaults
from genaffect_jax.export.diffusers import export_diffusers
from genaffect_jax.export.from_torch import from_torch

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.torch
OWN = SamplingDefaults(steps=3, guidance_expression=1.0, consistency=0.25)
TEXT = "joy, anger, sadness"
AS_GIVEN = {"num_inference_steps": 3, "guidance_identity": 1.0, "guidance_expression": 1.0, "consistency": 0.25}
OF_OLD_FOLDERS = {"num_inference_steps": 24, "guidance_identity": 1.0, "guidance_expression": 1.5, "consistency": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose own settings are not the usual ones, and were changed after its checkpoint was saved."""
    folder = tmp_path_factory.mktemp("defaults")
    save_avatar_run(folder / "run", folder / "encoder.safetensors")
    set_sampling(folder / "run", OWN)
    return folder / "run"


@pytest.fixture(scope="module")
def ours(run: Path) -> Pipeline:
    return Pipeline.load(run, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def person(ours: Pipeline) -> np.ndarray:
    return ours.reference("seed:11")


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export_diffusers(run, run.with_name("exported"), cases=())
    return run.with_name("exported")


@pytest.fixture(scope="module")
def pipe(exported: Path) -> Any:
    return load(exported)


def latents(pipe: Any, person: np.ndarray, **settings: Any) -> np.ndarray:
    given = {"image": to_pil(person), "expressions": TEXT, "output_type": "latent"}
    return pipe.run(**given, **settings).get("latents").numpy()


def with_sampling(folder: Path, target: Path, sampling: dict[str, Any] | None) -> Path:
    """A copy of an exported folder whose adapter says other settings of its own, or nothing of them."""
    shutil.copytree(folder, target)
    file = target / "adapter" / "config.json"
    content = json.loads(file.read_text())
    content["run"]["config"].pop("sampling")
    content["run"]["config"] |= {} if sampling is None else {"sampling": sampling}
    file.write_text(json.dumps(content))
    return target


def test_a_call_without_settings_gives_what_our_pipeline_gives_without_settings(pipe, ours, person):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the model's own")
        found = pipe(to_pil(person), TEXT).images
    assert_same_images(found, ours(person, TEXT).images)
    own = latents(pipe, person)
    np.testing.assert_array_equal(own, latents(pipe, person, **AS_GIVEN))
    # Each of the settings shows, so that none can be another one unnoticed.
    for name in ("num_inference_steps", "guidance_expression", "consistency"):
        assert np.abs(own - latents(pipe, person, **{name: OF_OLD_FOLDERS[name]})).max() > 1e-2, name


@pytest.mark.parametrize(
    "given",
    [
        {"num_inference_steps": 2},
        {"guidance_identity": 1.5},
        {"guidance_expression": 0.0},
        {"consistency": 0.0},
        OF_OLD_FOLDERS,
    ],
    ids=lambda given: ",".join(given),
)
def test_a_setting_that_is_given_wins_and_the_others_stay(pipe, person, given):
    found = latents(pipe, person, **given)
    np.testing.assert_array_equal(found, latents(pipe, person, **{**AS_GIVEN, **given}))
    assert np.abs(found - latents(pipe, person)).max() > 1e-2


def test_the_modular_blocks_have_the_models_own_settings(exported, pipe, person):
    modular = diffusers.ModularPipeline.from_pretrained(str(exported), trust_remote_code=True)
    modular.load_components()
    given = {"image": to_pil(person), "expressions": TEXT, "output_type": "latent"}
    np.testing.assert_array_equal(modular(**given, output="latents"), latents(pipe, person))
    found = modular(**given, num_inference_steps=2, output="latents")
    np.testing.assert_array_equal(found, latents(pipe, person, num_inference_steps=2))


def test_a_folder_that_says_nothing_of_settings_has_those_of_earlier_versions(exported, pipe, person, tmp_path):
    old = load(with_sampling(exported, tmp_path / "old", None), exported)
    expected = latents(pipe, person, **OF_OLD_FOLDERS)
    np.testing.assert_array_equal(latents(old, person), expected)
    old.adapter.register_to_config(run=None)
    np.testing.assert_array_equal(latents(old, person), expected)


@pytest.mark.parametrize("solver", ["heun", "dpm++"])
def test_a_call_says_that_the_models_own_solver_is_not_there(exported, pipe, ours, person, tmp_path, solver):
    sampling = {**dataclasses.asdict(OWN), "solver": solver, "steps": 5}
    other = load(with_sampling(exported, tmp_path / "other", sampling), exported)
    for call in range(2):
        with pytest.warns(UserWarning, match=r"own solver is '.*', which is not here.* solver 'euler', 5 steps"):
            found = other(to_pil(person), TEXT).images
        assert found, call
    assert_same_images(found, ours(person, TEXT, solver="euler", steps=5).images)
    assert np.abs(np.stack(found).astype(int) - ours(person, TEXT, solver=solver, steps=5).images).max() > 1
    other.scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the model's own")
        other(to_pil(person), TEXT)


def test_the_models_own_settings_come_home_from_pytorch(pipe, exported, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    for folder in (exported, tmp_path / "saved"):
        home = tmp_path / f"home_of_{folder.name}"
        from_torch(folder, home)
        assert RunDir(home).sampling_defaults() == OWN
        assert Pipeline.load(home, devices=jax.devices()[:1]).config.sampling == OWN
