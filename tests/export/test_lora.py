"""`export lora` writes what a run added to its base model, and refuses what such a file cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from support.sd3_runs import run_config, save_run

from genaffect_jax.config import LoraConfig
from genaffect_jax.errors import WRONG_ARGUMENT
from genaffect_jax.export import __main__ as export

RANK, ALPHA = 2, 6.0


def command(model: Path, out: Path) -> int:
    return export.main(["lora", "--model", str(model), "--out", str(out)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run") / "mine"
    return folder, save_run(folder, run_config(LoraConfig(rank=RANK, alpha=ALPHA)))


def test_keys_are_those_of_diffusers_and_the_scale_is_in_the_second_factor(run, tmp_path: Path, capsys) -> None:
    folder, parameters = run
    out = tmp_path / "new" / "lora.safetensors"
    assert command(folder, out) == 0
    tensors = load_file(out)
    query = "mmdit.segments.1.layers.image_qkv.query.kernel"  # block 1
    name = "transformer.transformer_blocks.1.attn.to_q"
    np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], parameters[f"{query}.lora_a"][0].T)
    scaled = ALPHA / RANK * np.asarray(parameters[f"{query}.lora_b"][0].T)
    np.testing.assert_allclose(tensors[f"{name}.lora_B.weight"], scaled, rtol=1e-6)
    modules = {key.rsplit(".", 2)[0] for key in tensors}
    assert len(tensors) == 2 * len(modules)
    # Three blocks with 3 + 3 projections and an output each, one more output for text in two, and a dual attention.
    assert len(modules) == 3 * 7 + 2 + 4
    with safe_open(out, "numpy") as file:
        configuration = json.loads(file.metadata()["lora_adapter_metadata"])
    assert configuration["transformer.r"] == configuration["transformer.lora_alpha"] == RANK
    assert {f"transformer.{target}" for target in configuration["transformer.target_modules"]} == modules
    said = " ".join(capsys.readouterr().err.split())
    assert "not in the file: the identity and expression branches" in said
    assert "it fits this package and folders" not in said


def test_files_of_models_with_register_tokens_are_said_to_be_for_this_package(tmp_path: Path, capsys) -> None:
    save_run(tmp_path / "run", run_config(LoraConfig(rank=1), register_tokens=2, pooled_projection_dim=0))
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == 0
    assert "it fits this package and folders of export diffusers" in " ".join(capsys.readouterr().err.split())


def test_additions_to_parts_outside_the_transformer_are_named(tmp_path: Path, capsys) -> None:
    targets = ("mmdit.out.kernel", "mmdit.segments.0.layers.identity.key.kernel", "identity_projector.embed.kernel")
    save_run(tmp_path / "run", run_config(LoraConfig(rank=1, targets=targets)))
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == WRONG_ARGUMENT
    said = capsys.readouterr().err
    assert "parts that the SD3 transformer does not have: identity_projector.embed.kernel, mmdit.segments.0" in said
    assert "mmdit.out.kernel" not in said
    assert not (tmp_path / "a.safetensors").exists()


def test_a_run_that_changed_more_of_the_transformer_is_refused_with_names(tmp_path: Path, capsys) -> None:
    trainable = ("mmdit.out.bias", "adapters")
    save_run(tmp_path / "run", run_config(LoraConfig(rank=1), trainable))
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == WRONG_ARGUMENT
    assert "more of the transformer than additions (mmdit.out.bias)" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_runs_without_additions_and_existing_files_are_refused(run, tmp_path: Path, capsys) -> None:
    save_run(tmp_path / "run", run_config())
    assert command(tmp_path / "run", tmp_path / "a.safetensors") == WRONG_ARGUMENT
    assert "has no low-rank additions" in capsys.readouterr().err
    (tmp_path / "a.safetensors").write_text("mine")
    assert command(run[0], tmp_path / "a.safetensors") == WRONG_ARGUMENT
    assert "exists; name a new file" in capsys.readouterr().err
    assert (tmp_path / "a.safetensors").read_text() == "mine"
    assert command(run[0], tmp_path / "merged") == WRONG_ARGUMENT
    assert "must end in .safetensors" in capsys.readouterr().err
