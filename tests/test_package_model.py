"""The model inside the package: drawn without naming it, small and whole."""

from __future__ import annotations

import fnmatch
import json
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support.devices import first_device

from genaffect_jax import sample
from genaffect_jax.checkpoints.digests import RunDigests, file_digest
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.export.model_card import licence_of
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.io.package_files import DEFAULT_MODEL, assets, package_models, resolve_model
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.pipeline import Pipeline

FOLDER = resolve_model(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(devices=jax.devices()[:1])


def test_all_assets_take_at_most_40_mib() -> None:
    assert sum(file.stat().st_size for file in assets().rglob("*") if file.is_file()) <= 40 * 2**20


def test_every_asset_is_installed_with_the_package() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    patterns = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["genaffect_jax"]
    for file in assets().rglob("*"):
        name = file.relative_to(assets().parent).as_posix()
        same_depth = [pattern for pattern in patterns if pattern.count("/") == name.count("/")]
        assert file.is_dir() or any(fnmatch.fnmatch(name, pattern) for pattern in same_depth), name


def test_every_file_is_as_it_was_released() -> None:
    assert DEFAULT_MODEL in package_models()
    recorded = RunDigests.read(RunDir(FOLDER)).files
    files = {file.name for file in FOLDER.glob("*.safetensors")}
    assert {"denoiser.safetensors", "autoencoder.safetensors", "latent_range.safetensors"} == files <= recorded.keys()
    assert all(file_digest(FOLDER / name) == recorded[name] for name in files)


def test_it_keeps_the_person_and_shows_the_expression(pipeline) -> None:
    # Four evaluations an image; true images of these words have an error of 3.8 and a cosine of 0.94 to each other.
    wanted = pipeline.parse("joy, anger")
    avatars = pipeline("seed:1000007", wanted)
    assert avatars.images.shape == (2, 256, 256, 3)
    assert avatars.settings["steps"] == 4
    read = load_expression_encoder("package:expression_evaluator")(avatars.images)
    errors = np.abs(read - np.stack([expression.vector for expression in wanted])).mean(axis=1) * 100
    assert errors.max() < 8, errors  # another word of the two: 20
    vectors = load_identity_encoder("package:identity_evaluator")(
        np.concatenate([avatars.references[:1], avatars.images])
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors[1:] @ vectors[0]).min() > 0.8  # strangers: 0.05


def test_sample_needs_no_model_and_no_settings(pipeline, tmp_path, capsys) -> None:
    Image.fromarray(pipeline.reference("seed:1000003")).save(tmp_path / "mine.png")
    words = ["--identity", str(tmp_path / "mine.png"), "--expressions", "joy", "--out", str(tmp_path / "set")]
    with first_device():
        assert sample.main(words) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "set" / "set.json").read_text())
    assert found["model"].startswith("avatar_s, step 7500,")
    assert (found["steps"], found["guidance_expression"]) == (4, 1.0)
    assert Image.open(tmp_path / "set" / "01_joy.png").size == (256, 256)
    with first_device():
        assert sample.main(["--add_to", str(tmp_path / "set"), "--expressions", "anger"]) == 0, capsys.readouterr().err


def test_its_exports_have_the_licence_of_the_package() -> None:
    assert licence_of(TrainedModel.load(Path(DEFAULT_MODEL))) == "Apache-2.0"


def test_a_name_leads_to_no_folder_outside_the_package() -> None:
    assert resolve_model("package:../../etc").parent == assets()
