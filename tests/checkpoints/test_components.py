"""Frozen components: nothing enters the run folder before it has been read and checked, and nothing stale stays."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from genaffect_jax.checkpoints.components import install_autoencoder, install_encoders, read_autoencoder, read_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import FaceEncoderConfig, ModelConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.face_encoders.encoder import build_encoder
from genaffect_jax.models.functional import Parameters
from genaffect_jax.training.denoiser.pretrained import place_autoencoder

FACE = FaceEncoderConfig(width=12, image_size=32, widths=(8, 8), depths=(1, 1), norm_num_groups=4, neck=4, hidden=16)


def install(run_dir: RunDir, model: ModelConfig) -> Parameters:
    network = build_networks(model)[1]
    return install_autoencoder(
        run_dir,
        network,
        model.autoencoder,
        lambda path: place_autoencoder(model.autoencoder, model.autoencoder_weights, path),
    )


def autoencoder_file(model: ModelConfig, path: Path, seed: int, **changes) -> ModelConfig:
    """The model with an autoencoder of its own; `changes` make the file one of another configuration."""
    config = dataclasses.replace(model.autoencoder, **changes)
    network = build_networks(dataclasses.replace(model, autoencoder=config))[1]
    save_weights(network.init(jax.random.key(seed)), path, "float32", config)
    return dataclasses.replace(model, autoencoder_weights=str(path))


def with_identity(model: ModelConfig, path: Path, width: int = FACE.width) -> ModelConfig:
    conditioning = dataclasses.replace(model.conditioning, identity_embedding=width)
    return dataclasses.replace(model, identity_encoder=str(path), conditioning=conditioning)


@pytest.fixture(scope="module")
def face(tmp_path_factory):
    path = tmp_path_factory.mktemp("face") / "face.safetensors"
    save_weights(build_encoder(FACE).init(jax.random.key(0)), path, "float32", FACE, {"name": "a", "licence": "b"})
    return path


def first_value(parameters: Parameters) -> np.ndarray:
    return np.asarray(parameters["decoder.conv_in.kernel"])


@pytest.mark.parametrize("wrong", ["another scale", "other widths", "no weight file", "cut off", "not there"])
def test_an_autoencoder_that_is_refused_never_enters_the_run_folder(tiny_model, tmp_path, wrong):
    source, run_dir = tmp_path / "source.safetensors", RunDir(tmp_path / "run")
    changes = {"another scale": {"scaling_factor": 3.0}, "other widths": {"block_out_channels": (8, 16, 16)}}
    model = autoencoder_file(tiny_model, source, 1, **changes.get(wrong, {}))
    if wrong == "no weight file":
        source.write_bytes(b"nothing")
    elif wrong == "cut off":
        source.write_bytes(source.read_bytes()[:-10])
    elif wrong == "not there":
        source.unlink()
    with pytest.raises(WeightsError, match=r"source\.safetensors"):
        install(run_dir, model)
    assert not run_dir.path.exists() or list(run_dir.path.iterdir()) == []
    install(run_dir, tiny_model)  # the corrected command
    assert run_dir.autoencoder.read_bytes() == Path(tiny_model.autoencoder_weights).read_bytes()


def test_components_of_an_earlier_start_are_replaced_until_there_is_a_checkpoint(tiny_model, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    first, second, third = (autoencoder_file(tiny_model, tmp_path / f"{i}.safetensors", i) for i in (1, 2, 3))
    install(run_dir, first)
    found = first_value(install(run_dir, second))
    assert run_dir.autoencoder.read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    (run_dir.checkpoints / "1").mkdir(parents=True)
    np.testing.assert_array_equal(first_value(install(run_dir, third)), found)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()  # the folder stays usable when the originals are gone
    np.testing.assert_array_equal(first_value(install(run_dir, third)), found)


def test_a_component_that_is_gone_is_not_replaced_by_whatever_the_settings_name_now(tiny_model, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    source = tmp_path / "1.safetensors"
    model = autoencoder_file(tiny_model, source, 1)
    install(run_dir, model)
    (run_dir.checkpoints / "1").mkdir(parents=True)
    run_dir.autoencoder.unlink()
    autoencoder_file(tiny_model, source, 2)
    with pytest.raises(WeightsError, match=r"run/autoencoder\.safetensors: is gone, .* restore it from a copy"):
        install(run_dir, model)
    assert not run_dir.autoencoder.exists()


def test_a_copy_that_fails_in_the_middle_leaves_nothing_and_names_the_destination(tiny_model, tmp_path, monkeypatch):
    run_dir, real = RunDir(tmp_path / "run"), shutil.copyfile

    def full_disk(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="No space left on device") as raised:
        install(run_dir, tiny_model)
    assert raised.value.filename == str(run_dir.autoencoder)
    assert list(run_dir.path.iterdir()) == []
    monkeypatch.setattr(shutil, "copyfile", real)
    install(run_dir, tiny_model)


def test_an_encoder_of_another_width_never_enters_the_run_folder(tiny_model, face, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    with pytest.raises(ConfigError, match="identity_embedding=13: must be 12"):
        install_encoders(run_dir, with_identity(tiny_model, face, width=13))
    assert not run_dir.path.exists()
    assert install_encoders(run_dir, with_identity(tiny_model, face)).identity is not None


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    file.write_bytes(content)


def put_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_a_link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("damage", [flip_a_bit, put_a_folder, put_a_link_to_itself, empty, Path.unlink])
def test_a_damaged_component_is_one_error_that_names_the_file(tiny_model, face, tmp_path, damage, recorded):
    run_dir, model = RunDir(tmp_path / "run"), with_identity(tiny_model, face)
    install(run_dir, model)
    install_encoders(run_dir, model)
    (run_dir.checkpoints / "1").mkdir(parents=True)
    if not recorded:  # a folder of an earlier version
        run_dir.digests.unlink()
        read_encoders(run_dir, model)
    network = build_networks(model)[1]
    for file, read in (
        (run_dir.autoencoder, lambda: read_autoencoder(run_dir, network, model.autoencoder)),
        (run_dir.identity_encoder, lambda: read_encoders(run_dir, model)),
    ):
        read()
        damage(file)
        if damage is flip_a_bit and not recorded:
            read()  # what the digests are for
            continue
        with pytest.raises(WeightsError) as raised:
            read()
        assert str(file) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
