"""LoRA files at sampling time: added before kernels are rounded, recorded in the set, and asked for by `--lora`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.sd3_runs import run_config, save_run

from genaffect_jax import sample
from genaffect_jax.config import LoraConfig, TrainConfig
from genaffect_jax.errors import FAILED, WRONG_ARGUMENT, ConfigError
from genaffect_jax.export.lora import export_lora
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.build import build_networks
from genaffect_jax.pipeline import Pipeline

QUERY = "mmdit.segments.1.layers.image_qkv.query.kernel"
LAYER = "transformer.transformer_blocks.1.attn.to_q"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """A run with low-rank additions, its network and parameters, the same without them, and the exported additions."""
    folder = tmp_path_factory.mktemp("runs")
    config = run_config(LoraConfig(rank=2, alpha=3.0), register_tokens=2, pooled_projection_dim=0)
    config = dataclasses.replace(config, train=TrainConfig(trainable=("adapters",), compute_dtype="bfloat16"))
    parameters = save_run(folder / "lora", config)
    base = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))
    network = build_networks(config.model)[0]
    save_run(folder / "base", base, parameters={name: parameters[name] for name in network.base.shapes})
    export_lora(folder / "lora", folder / "additions.safetensors")
    return folder, network, parameters


def load(folder: Path, **named) -> Pipeline:
    return Pipeline.load(folder, devices=jax.devices()[:1], **named)


def test_kernels_are_rounded_after_the_additions(runs) -> None:
    folder, network, parameters = runs
    pipeline = load(folder / "base", loras=[(folder / "additions.safetensors", 1.0)])
    found, expected = pipeline.sampler.parameters, network.plain(parameters)
    types = build_networks(pipeline.config.model, "bfloat16")[0].compute_dtypes
    assert found[QUERY].dtype == types[QUERY] == "bfloat16"
    assert found.keys() == expected.keys()
    different = 0
    for name, value in expected.items():
        assert found[name].dtype == types.get(name, jnp.float32), name
        # A sum in another order may round to the neighbour.
        different += int((np.asarray(found[name]) != np.asarray(value.astype(found[name].dtype))).sum())
    assert different <= 5


def test_an_exported_file_makes_the_base_sample_as_the_model_that_it_comes_from(runs) -> None:
    folder, *_ = runs
    whole, added, base = (
        load(folder / name, loras=loras)("seed:3", "joy, fear", steps=2).images.astype(int)
        for name, loras in (
            ("lora", []),
            ("base", [(folder / "additions.safetensors", 1.0)]),
            ("base", []),
        )
    )
    # The trained model rounds its sums in the compiled program; single levels may differ.
    assert np.abs(whole - added).mean() < 0.05 * np.abs(whole - base).mean()


def test_files_are_added_to_a_model_with_additions_of_its_own(runs, tmp_path: Path) -> None:
    folder, network, parameters = runs
    weights = {key: value for key, value in load_file(folder / "additions.safetensors").items() if LAYER in key}
    save_file(weights, tmp_path / "again.safetensors")
    pipeline = Pipeline.load(folder / "lora", loras=[(str(tmp_path / "again.safetensors"), -1.0)])  # all devices
    plain = network.plain(pipeline.sampler.parameters)
    np.testing.assert_allclose(plain[QUERY], parameters[QUERY], atol=1e-5)  # taken away again
    other = QUERY.replace("query", "key")
    np.testing.assert_array_equal(pipeline.sampler.parameters[other], parameters[other])


def test_a_set_says_which_files_and_weights_made_it_and_is_extended_by_no_others(runs, tmp_path: Path, capsys) -> None:
    folder, *_ = runs
    first, second = tmp_path / "ink.safetensors", tmp_path / "oil.safetensors"
    rng = np.random.default_rng(0)
    for path in (first, second):
        factors = {"A": rng.standard_normal((1, 16), np.float32), "B": rng.standard_normal((16, 1), np.float32)}
        save_file({f"{LAYER}.lora_{letter}.weight": value for letter, value in factors.items()}, path)
    command = ["--model", str(folder / "base"), "--steps", "1", "--identity", "seed:3", "--expressions", "joy"]
    loras = ["--lora", f"{first}:0.5", str(second)]
    assert sample.main([*command, *loras, "--out", str(tmp_path / "set")]) == 0
    name = json.loads((tmp_path / "set" / "set.json").read_text())["model"]
    assert f", lora ink.safetensors:0.5 {checksum(first)[:12]}, lora oil.safetensors:1 {checksum(second)[:12]}" in name
    capsys.readouterr()
    more = ["--model", str(folder / "base"), "--add_to", str(tmp_path / "set"), "--expressions", "fear"]
    assert sample.main([*more, "--lora", f"{first}:0.6", str(second)]) == WRONG_ARGUMENT
    assert "sampled by another model" in capsys.readouterr().err
    assert sample.main([*more, *loras]) == 0


def test_a_file_that_cannot_be_used_is_named_and_no_set_is_written(runs, tmp_path: Path, capsys) -> None:
    folder, *_ = runs
    command = ["--model", str(folder / "base"), "--identity", "seed:3", "--out", str(tmp_path / "set")]
    assert sample.main([*command, "--lora", "nowhere.safetensors:0.5"]) == FAILED
    assert "nowhere.safetensors: no such file" in capsys.readouterr().err
    file = str(folder / "additions.safetensors")
    assert sample.main([*command, "--lora", f"{file}:0"]) == WRONG_ARGUMENT
    assert "--lora 0.0: must be finite and not zero" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    with pytest.raises(ConfigError, match="must be finite and not zero"):
        load(folder / "base", loras=[(file, 0.0)])


def test_the_weight_follows_the_last_colon(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sample.parse_lora("a.safetensors") == ("a.safetensors", 1.0)
    assert sample.parse_lora("c:/a.safetensors:-0.5") == ("c:/a.safetensors", -0.5)
    assert sample.parse_lora("c:/a.safetensors") == ("c:/a.safetensors", 1.0)
    Path("a:2").touch()
    assert sample.parse_lora("a:2") == ("a:2", 1.0)
