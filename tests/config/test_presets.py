"""The presets of the default model fit together and have the sizes they were planned with."""

import runpy
from pathlib import Path

import pytest

from genaffect_jax.checkpoints.averaged_weights import AveragedWeights
from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AutoencoderRun, DenoiserRun
from genaffect_jax.io.package_files import DEFAULT_MODEL
from genaffect_jax.models.build import build_networks

CONFIGS = Path(__file__).parents[2] / "configs"


def preset(name: str) -> DenoiserRun | AutoencoderRun:
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["config"]()


def test_avatar_s_reads_the_autoencoder_that_its_own_preset_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no weights here yet, as on a new machine
    denoiser, autoencoder = preset("avatar_s"), preset("autoencoder_s")
    assert denoiser.model.autoencoder == autoencoder.autoencoder
    assert denoiser.model.image_size == denoiser.data.image_size == autoencoder.data.image_size == 256
    assert denoiser.train.compute_dtype == autoencoder.train.compute_dtype == "bfloat16"


def test_avatar_s_is_conditioned_on_the_encoders_in_the_package(tmp_path):
    model = preset("avatar_s").model
    encoders = install_encoders(RunDir(tmp_path), model)
    assert (encoders.identity.name, encoders.expression.name) == ("identity_avatar", "expression_avatar")
    assert model.conditioning.expression_space == "units"  # exemplars are read, words are drawn from their units


def test_avatar_s_has_the_sizes_of_the_model_in_the_package():
    model = preset("avatar_s").model
    denoiser, autoencoder = build_networks(model)
    assert denoiser.size / 1e6 == pytest.approx(22.7, abs=0.1)
    assert autoencoder.size / 1e6 == pytest.approx(5.3, abs=0.1)
    assert model.mmdit.image_tokens == 256
    assert (256 + model.mmdit.register_tokens) % 8 == 0
    released = AveragedWeights(Path(DEFAULT_MODEL)).config()
    assert released.model.mmdit == model.mmdit
    assert released.model.conditioning == model.conditioning
    assert released.flow == preset("avatar_s").flow
    assert released.sampling == preset("avatar_s").sampling
