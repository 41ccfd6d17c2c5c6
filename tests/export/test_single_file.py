"""`export single-file` writes the transformer and the autoencoder of a run, says what is lost, and refuses the rest."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from support.sd3_runs import AUTOENCODER, MMDIT, random_parameters, run_config, save_run

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import LoraConfig, MMDiTConfig
from genaffect_jax.errors import FAILED, WRONG_ARGUMENT
from genaffect_jax.export import __main__ as export
from genaffect_jax.export import modelspec
from genaffect_jax.interop.diffusers.weights import read_autoencoder, read_transformer
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.build import build_networks


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """A run folder of a model with low-rank additions, and its parameters."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    config = run_config(LoraConfig(rank=2, alpha=6.0))
    return folder, config, save_run(folder, config)


def command(model: Path, out: Path, *more: str) -> int:
    return export.main(["single-file", "--model", str(model), "--out", str(out), *more])


def test_the_file_holds_transformer_and_autoencoder_with_additions_in_the_kernels(run, tmp_path, capsys) -> None:
    folder, config, parameters = run
    out = tmp_path / "new" / "sd3.safetensors"
    assert command(folder, out) == 0
    network, autoencoder = build_networks(config.model)
    plain = network.plain(parameters)
    found_config, found = read_transformer(out)
    assert found_config == MMDIT
    assert found
    for name, value in found.items():
        np.testing.assert_allclose(value, plain[f"mmdit.{name}"], atol=1e-6, err_msg=name)
    changed = "segments.0.layers.image_qkv.query.kernel"
    assert np.abs(found[changed] - parameters[f"mmdit.{changed}"]).max() > 1e-3
    found_config, found = read_autoencoder(out)
    assert found_config == AUTOENCODER
    for name, value in random_parameters(autoencoder, 1).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    said = " ".join(capsys.readouterr().err.split())
    assert "not in the file: the identity and expression branches" in said
    assert "changed nothing else" not in said
    assert "ComfyUI cannot load it: it takes width / 64" in said


def test_the_header_follows_the_metadata_standard(run, tmp_path: Path) -> None:
    out = tmp_path / "sd3.safetensors"
    assert command(run[0], out, "--dtype", "bf16", "--license", "mine alone") == 0
    with safe_open(out, "numpy") as file:
        found = {name.removeprefix("modelspec."): value for name, value in file.metadata().items()}
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118 (no mapping)
    assert found["sai_model_spec"] == "1.0.1"
    assert found["architecture"] == "stable-diffusion-v3"
    assert found["title"] == "mine, step 7"
    assert found["resolution"] == "16x16"
    assert found["license"] == "mine alone"
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    assert found["hash_sha256"].startswith("0x")
    assert found.keys() >= {"implementation", "description"}


def test_fine_tuned_sizes_keep_the_identifier_of_the_released_architecture() -> None:
    config = dataclasses.replace(MMDiTConfig.sd35_medium(), sample_size=64, remat="full")
    assert modelspec.architecture(config) == "stable-diffusion-v3.5-medium"
    assert modelspec.architecture(dataclasses.replace(config, num_layers=23)) == "stable-diffusion-v3"


def test_a_run_that_trained_the_adapters_alone_is_said_to_give_its_base_model(tmp_path: Path, capsys) -> None:
    # As wide for its number of blocks as the released models.
    save_run(tmp_path / "run", run_config(num_layers=2, attention_head_dim=64))
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the transformer is the one that it began with" in said
    assert "ComfyUI" not in said


def test_an_existing_file_is_replaced_only_if_asked(run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "sd3.safetensors"
    out.write_text("mine")
    assert command(run[0], out) == WRONG_ARGUMENT
    assert "exists; name a new file, or set overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert command(run[0], out, "--overwrite") == 0
    assert read_transformer(out)[0] == MMDIT
    assert command(run[0], tmp_path / "sd3.ckpt") == WRONG_ARGUMENT
    assert "must end in .safetensors" in capsys.readouterr().err


def test_networks_that_other_programs_do_not_have_are_refused(tmp_path: Path, capsys) -> None:
    config = run_config(register_tokens=2, pooled_projection_dim=0)
    save_run(tmp_path / "run", dataclasses.replace(config, model=dataclasses.replace(config.model, prediction="x0")))
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == WRONG_ARGUMENT
    said = capsys.readouterr().err
    for words in ("other programs have no such network", "register_tokens=2", "pooled_projection_dim=0", "=x0"):
        assert words in said
    assert not (tmp_path / "a.safetensors").exists()


def test_latents_scaled_unlike_those_of_sd3_are_refused(tmp_path: Path, capsys) -> None:
    config = run_config()
    model = dataclasses.replace(config.model, autoencoder=dataclasses.replace(AUTOENCODER, scaling_factor=2.0))
    config = dataclasses.replace(config, model=model)
    save_run(tmp_path / "run", config)
    save_weights(
        random_parameters(build_networks(model)[1]), RunDir(tmp_path / "run").autoencoder, "float32", model.autoencoder
    )
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == FAILED
    assert "scaling_factor=2.0 (readers take 1.5305)" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
