"""One-file checkpoints: diffusers reads ours, we read those that hold diffusers' weights, and no number changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.interop.diffusers.components import AUTOENCODER, TRANSFORMER
from genaffect_jax.interop.diffusers.single_file_writer import write_single_file
from genaffect_jax.interop.diffusers.weights import (
    load_autoencoder,
    load_transformer,
    read_autoencoder,
    read_transformer,
)
from genaffect_jax.models.functional import Parameters, parameters_of

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402 (needs torch)
from support import diffusers_models, original_layout  # noqa: E402 (needs torch)

pytestmark = pytest.mark.torch

# Without normalised queries nothing in a file tells the width of a head, and all of the SD3 family have 64.
TRANSFORMERS = {
    "sd3": dataclasses.replace(diffusers_models.SMALL, qk_norm="none", attention_head_dim=64, num_attention_heads=1),
    **{name: c for name, c in diffusers_models.TRANSFORMERS.items() if name != "sd3"},
}
DECODER = dataclasses.replace(AutoencoderConfig.sd3(), block_out_channels=(32, 32, 64))


@pytest.fixture(scope="module", params=TRANSFORMERS)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A model of diffusers, its folder, and a checkpoint with its weights, an autoencoder and text encoders."""
    model = diffusers_models.randomised(diffusers_models.transformer(TRANSFORMERS[request.param]))
    decoder = diffusers_models.randomised(diffusers_models.autoencoder(DECODER))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "transformer")
    decoder.save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text("{}")
    text = {"text_encoders.clip_l.logit_scale": torch.ones(1, dtype=torch.float8_e4m3fn)}
    save_file({**original_layout.checkpoint(model, decoder), **text}, folder / "whole.safetensors")
    save_file(original_layout.checkpoint(model, prefixes=False), folder / "bare.safetensors")
    return model, decoder, folder


def assert_same(found: Parameters, expected: Parameters) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name


def test_a_checkpoint_is_read_as_the_folder_with_the_same_weights(theirs) -> None:
    *_, folder = theirs
    config, expected = read_transformer(folder)
    for name in ("whole", "bare"):
        inferred, found = read_transformer(folder / f"{name}.safetensors")
        # The size of the images leaves no trace; the table's largest grid is smaller than SD3's latents here.
        assert dataclasses.replace(inferred, sample_size=config.sample_size) == config
        assert inferred.sample_size == config.pos_embed_max_size * config.patch_size
        assert_same(found, expected)
    model = load_transformer(folder / "whole.safetensors", dtype="bfloat16")
    assert_same(parameters_of(model), {name: p.astype(jnp.bfloat16) for name, p in expected.items()})


def test_the_autoencoder_of_a_checkpoint_is_read_as_the_folder_with_the_same_weights(theirs) -> None:
    *_, folder = theirs
    config, expected = read_autoencoder(folder)
    found_config, found = read_autoencoder(folder / "whole.safetensors")
    assert found_config == config == DECODER
    assert_same(found, expected)
    assert_same(parameters_of(load_autoencoder(folder / "whole.safetensors")), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reading_and_writing_a_checkpoint_is_the_identity(theirs, dtype: str, tmp_path: Path) -> None:
    model, decoder, _ = theirs
    before = {key: value.to(getattr(torch, dtype)) for key, value in original_layout.checkpoint(model, decoder).items()}
    save_file(before, tmp_path / "a.safetensors")
    write_single_file(
        tmp_path / "b.safetensors",
        read_transformer(tmp_path / "a.safetensors"),
        read_autoencoder(tmp_path / "a.safetensors"),
        dtype=dtype,
        metadata={},
    )
    after = load_file(tmp_path / "b.safetensors")
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key].dtype == value.dtype, key
        assert torch.equal(after[key], value), key


def test_diffusers_loads_our_checkpoint_as_the_same_networks(theirs, tmp_path: Path) -> None:
    model, decoder, folder = theirs
    file = tmp_path / "ours.safetensors"
    metadata = {"modelspec.title": "tiny"}
    write_single_file(file, read_transformer(folder), read_autoencoder(folder), dtype="float32", metadata=metadata)
    back = diffusers.SD3Transformer2DModel.from_single_file(
        str(file), config=str(folder), subfolder="transformer", local_files_only=True
    ).eval()
    config = back.config
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(2, config.in_channels, 8, 6, generator=generator),
        "encoder_hidden_states": torch.randn(2, 3, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([10.0, 900.0]),
    }
    images = torch.rand(1, 3, 16, 8, generator=generator) * 2 - 1
    vae = diffusers.AutoencoderKL.from_single_file(
        str(file), config=str(folder), subfolder="vae", local_files_only=True
    ).eval()
    with torch.no_grad():
        expected = model(**inputs).sample
        assert expected.abs().max() > 0.1
        assert torch.equal(back(**inputs).sample, expected)
        latents = decoder.encode(images).latent_dist.mean
        assert torch.equal(vae.encode(images).latent_dist.mean, latents)
        assert torch.equal(vae.decode(latents).sample, decoder.decode(latents).sample)


SD3_FAMILY = {
    "SD3-medium": (TRANSFORMER, MMDiTConfig.sd3_medium(), diffusers_models.transformer, original_layout.transformer),
    "SD3.5-medium": (TRANSFORMER, MMDiTConfig.sd35_medium(), diffusers_models.transformer, original_layout.transformer),
    "SD3.5-large": (TRANSFORMER, MMDiTConfig.sd35_large(), diffusers_models.transformer, original_layout.transformer),
    "SD3 autoencoder": (
        AUTOENCODER,
        AutoencoderConfig.sd3(),
        diffusers_models.autoencoder,
        original_layout.autoencoder,
    ),
}


@pytest.mark.parametrize("name", SD3_FAMILY)
def test_keys_shapes_and_configuration_of_the_full_sizes_follow_from_each_other(name: str) -> None:
    component, config, build, original = SD3_FAMILY[name]
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in original(build(config)).items()}
    assert component.infer(shapes) == config
    pieces = {key: piece.shape for key, piece in component.pieces(config).items()}
    tensors = component.original.tensors(config, pieces)
    assert {key: tensor.shape(pieces) for key, tensor in tensors.items()} == shapes
