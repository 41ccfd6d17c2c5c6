"""Weights go from diffusers to here and back without the change of a bit, in every published size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.interop.diffusers.rules import match
from genaffect_jax.interop.diffusers.weights import (
    AUTOENCODER,
    TRANSFORMER,
    Component,
    load_autoencoder,
    load_transformer,
    save_autoencoder,
    save_transformer,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from support import diffusers_models  # noqa: E402 (needs torch)

pytestmark = pytest.mark.torch

FULL_SIZE = {
    "SD3-medium": (TRANSFORMER, MMDiTConfig.sd3_medium(), diffusers_models.transformer),
    "SD3.5-medium": (TRANSFORMER, MMDiTConfig.sd35_medium(), diffusers_models.transformer),
    "SD3.5-large": (TRANSFORMER, MMDiTConfig.sd35_large(), diffusers_models.transformer),
    "SD3 autoencoder": (AUTOENCODER, AutoencoderConfig.sd3(), diffusers_models.autoencoder),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_key_and_shape_of_the_full_size_network_has_one_place(name: str) -> None:
    component, config, build = FULL_SIZE[name]
    with torch.device("meta"):
        theirs = build(config)
    keys = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    parameters = {name: s.shape for name, s in component.network(config).shapes.items()}
    rules = component.rules(config)
    inwards = match(rules, parameters, keys, name)
    assert {piece.key: piece.shape for piece in inwards} == keys
    assert match(rules, parameters, None, name) == inwards
    filled = [(piece.parameter, piece.layer) for piece in inwards]
    assert len(set(filled)) == len(filled)
    sizes = dict.fromkeys(parameters, 0)
    for piece in inwards:
        sizes[piece.parameter] += int(np.prod(piece.shape))
    assert sizes == {name: int(np.prod(shape)) for name, shape in parameters.items()}
    assert component.parse(json.loads(theirs.to_json_string())) == config


def test_no_line_of_a_table_is_superfluous() -> None:
    for component in (TRANSFORMER, AUTOENCODER):
        configs = [c for kind, c, _ in FULL_SIZE.values() if kind is component]
        names = {
            f"blocks.0.{name.split('.', 3)[3]}" if name.startswith("segments.") else name
            for config in configs
            for name in component.network(config).shapes
        }
        for rule in component.rules(configs[0]):
            assert any(rule.key(name) for name in names), rule


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor, from all files."""
    return {
        key: (str(value.dtype), value.shape, value.tobytes())
        for file in folder.glob("*.safetensors")
        for key, value in load_file(file).items()
    }


def functions(component: Component):
    return (load_transformer, save_transformer) if component is TRANSFORMER else (load_autoencoder, save_autoencoder)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*diffusers_models.TRANSFORMERS, *diffusers_models.AUTOENCODERS])
def test_import_then_export_is_the_identity(name: str, dtype: str, tmp_path: Path) -> None:
    if name in diffusers_models.TRANSFORMERS:
        component, theirs = TRANSFORMER, diffusers_models.transformer(diffusers_models.TRANSFORMERS[name])
    else:
        component, theirs = AUTOENCODER, diffusers_models.autoencoder(diffusers_models.AUTOENCODERS[name])
    load, save = functions(component)
    shards = {"max_shard_size": "50KB"} if dtype == "bfloat16" else {}
    diffusers_models.randomised(theirs).to(DTYPES[dtype]).save_pretrained(tmp_path / "theirs", **shards)
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    expected = tensors(tmp_path / "theirs")
    assert {kind for kind, _, _ in expected.values()} == {dtype}
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 or dtype != "bfloat16"
    assert tensors(tmp_path / "ours") == expected


def settings(model) -> dict[str, object]:
    """What the model's constructor was given."""
    given = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


@pytest.mark.parametrize("shard_bytes", [2**30, 30_000], ids=["whole", "shards"])
@pytest.mark.parametrize("name", ["sd3", "sd35_medium"])
def test_diffusers_loads_a_saved_transformer_as_the_same_model(name: str, shard_bytes: int, tmp_path: Path) -> None:
    config = diffusers_models.TRANSFORMERS[name]
    original = diffusers_models.randomised(diffusers_models.transformer(config))
    original.save_pretrained(tmp_path / "theirs")
    save_transformer(load_transformer(tmp_path / "theirs"), tmp_path / "ours", max_shard_bytes=shard_bytes)
    back = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "ours").eval()
    assert settings(back) == settings(original)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(2, config.in_channels, 8, 6, generator=generator),
        "encoder_hidden_states": torch.randn(2, 3, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([10.0, 900.0]),
    }
    with torch.no_grad():
        assert torch.equal(back(**inputs).sample, original(**inputs).sample)


def test_diffusers_loads_a_saved_autoencoder_as_the_same_model(tmp_path: Path) -> None:
    original = diffusers_models.randomised(diffusers_models.autoencoder(diffusers_models.AUTOENCODERS["one_layer"]))
    original.save_pretrained(tmp_path / "theirs")
    save_autoencoder(load_autoencoder(tmp_path / "theirs"), tmp_path / "ours")
    back = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours").eval()
    # diffusers' own default of the size from which it may tile, and SD3's.
    assert settings(back) == {**settings(original), "sample_size": 1024}
    images = torch.rand(1, 3, 16, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = original.encode(images).latent_dist.mean
        assert torch.equal(back.encode(images).latent_dist.mean, latents)
        assert torch.equal(back.decode(latents).sample, original.decode(latents).sample)
