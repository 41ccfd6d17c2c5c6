"""A released model samples what its run folder samples, in a fraction of the room, and says what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from support.exported import faces_config, save_faces_run

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import SamplingDefaults, to_json
from genaffect_jax.errors import CheckpointError, ConfigError, WeightsError
from genaffect_jax.export.__main__ import main
from genaffect_jax.export.released import export_model
from genaffect_jax.io.weight_file import resolve_weights
from genaffect_jax.pipeline import Pipeline


def sample(folder, **changes):
    return Pipeline.load(folder, devices=jax.devices()[:1])("seed:3", "joy, anger", **{"steps": 2, **changes}).images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model with both face encoders, copies of the package's, and sampling settings of its own."""
    folder = tmp_path_factory.mktemp("faces") / "run"
    save_faces_run(folder)
    settings = dataclasses.replace(faces_config(), sampling=SamplingDefaults(steps=3, guidance_expression=1.0))
    (folder / "config.json").write_text(to_json(settings))
    return folder


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "exact"
    export_model(run, folder, "float32")
    return folder


def test_it_gives_the_images_of_its_run_folder(run, released) -> None:
    np.testing.assert_array_equal(sample(released), sample(run))


def test_it_keeps_its_step_and_how_it_is_sampled(run, released) -> None:
    found, expected = (Pipeline.load(folder, devices=jax.devices()[:1]) for folder in (released, run))
    assert found.name == expected.name.replace("run,", "exact,", 1)
    assert found.config.sampling == SamplingDefaults(steps=3, guidance_expression=1.0)


def test_eight_bits_take_less_room_and_change_the_images_little(run, released, tmp_path) -> None:
    assert main(["model", "--model", str(run), "--out", str(tmp_path / "small")]) == 0
    small, whole = ((folder / "denoiser.safetensors").stat().st_size for folder in (tmp_path / "small", released))
    assert small < 0.48 * whole  # half of this small file is its header; a large one takes a quarter
    difference = np.abs(sample(tmp_path / "small").astype(int) - sample(run))
    assert 0 < difference.mean() < 5  # of 255, with random weights


def test_encoders_of_the_package_are_not_copied(run, released) -> None:
    assert not (released / "identity_encoder.safetensors").exists()
    assert (released / "word_prototypes.safetensors").exists()
    recorded = json.loads((released / "digests.json").read_text())["files"]
    assert {"identity_encoder.safetensors", "expression_encoder.safetensors"} <= recorded.keys()


def test_encoders_of_others_are_copied(run, tmp_path) -> None:
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    # Any other network of this kind: the evaluator's would be refused.
    content = bytearray((changed / "identity_encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "identity_encoder.safetensors").write_bytes(content)
    export_model(changed, tmp_path / "released", "float32")
    assert (tmp_path / "released" / "identity_encoder.safetensors").read_bytes() == content
    np.testing.assert_array_equal(sample(tmp_path / "released"), sample(changed))


def test_an_encoder_that_the_package_no_longer_has_is_named(released, tmp_path) -> None:
    old = tmp_path / "old"
    shutil.copytree(released, old)
    record = json.loads((old / "digests.json").read_text())
    record["files"]["identity_encoder.safetensors"] = "0" * 64
    (old / "digests.json").write_text(json.dumps(record))
    with pytest.raises(
        WeightsError, match=r"identity_encoder\.safetensors: is missing, and package:identity_avatar of"
    ):
        Pipeline.load(old)
    shutil.copyfile(resolve_weights("package:identity_avatar"), old / "identity_encoder.safetensors")
    with pytest.raises(WeightsError, match=r"identity_encoder\.safetensors: damaged"):
        Pipeline.load(old)


def test_damage_is_found(released, tmp_path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(released, damaged)
    content = bytearray((damaged / "denoiser.safetensors").read_bytes())
    content[-1] ^= 64
    (damaged / "denoiser.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"denoiser\.safetensors: damaged"):
        Pipeline.load(damaged)


def test_it_can_be_exported_again_but_not_trained(released, tmp_path) -> None:
    export_model(released, tmp_path / "again", "float32")
    assert (tmp_path / "again" / "digests.json").read_text() == (released / "digests.json").read_text()
    shutil.copytree(released, tmp_path / "train")
    with pytest.raises(ConfigError, match="holds a released model, which cannot be trained"):
        RunDir.create(tmp_path / "train", faces_config())


def test_it_has_no_checkpoints_to_choose_from(released) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint 'best': a released model has none"):
        Pipeline.load(released, checkpoint="best")


def test_a_folder_that_exists_is_left_alone(run, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        export_model(run, tmp_path, "int8")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_model_that_the_package_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"package:nobody.*inside the package"):
        Pipeline.load("package:nobody")
