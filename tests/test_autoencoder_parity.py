"""The autoencoder is the same function as diffusers' AutoencoderKL."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.config import AutoencoderConfig
from genaffect_jax.models.autoencoder import AutoencoderKL, sd3
from genaffect_jax.models.functional import Functional

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

RENAMES = (
    (r"\.(down|up)samplers\.0\.", ".resampler."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"(norm\w*)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
)


def reference(config: AutoencoderConfig) -> diffusers.AutoencoderKL:
    levels = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def ours_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def ours_value(value: np.ndarray) -> np.ndarray:
    return {4: lambda v: v.transpose(2, 3, 1, 0), 2: lambda v: v.T, 1: lambda v: v}[value.ndim](value)


@pytest.fixture(scope="module", params=[((8, 16, 24), 2, 4), ((16, 16), 1, 16)], ids=["two_layers", "one_layer"])
def pair(request: pytest.FixtureRequest) -> tuple[diffusers.AutoencoderKL, AutoencoderKL]:
    channels, layers, groups = request.param
    config = AutoencoderConfig(
        block_out_channels=channels, layers_per_block=layers, norm_num_groups=groups, latent_channels=5
    )
    theirs = reference(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in theirs.named_parameters():  # nothing stays at zero or one
            noise = torch.randn(value.shape, generator=generator)
            fan_in = value[0].numel() if value.ndim > 1 else 1
            value.copy_(
                noise * fan_in**-0.5 if value.ndim > 1 else 0.3 * noise + float("norm" in name and "weight" in name)
            )
    network = Functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    values = {ours_name(name): jnp.asarray(ours_value(value.numpy())) for name, value in theirs.state_dict().items()}
    assert {n: v.shape for n, v in values.items()} == {n: s.shape for n, s in network.shapes.items()}
    return theirs, network.merge(values)


def relative_error(ours: jax.Array, theirs: torch.Tensor) -> float:
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("size", [(24, 40), (44, 12)])
def test_encode_gives_the_mean_and_log_variance_of_diffusers(pair, size) -> None:
    theirs, ours = pair
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())).latent_dist
    posterior = nnx.jit(AutoencoderKL.encode)(ours, jnp.asarray(pictures))
    assert relative_error(posterior.mean, expected.mean) <= 2e-5
    assert relative_error(posterior.logvar, expected.logvar) <= 2e-5
    np.testing.assert_allclose(posterior.kl(), expected.kl().numpy(), rtol=1e-4)


@pytest.mark.parametrize("size", [(6, 10), (11, 3)])
def test_decode_gives_the_pictures_of_diffusers(pair, size) -> None:
    theirs, ours = pair
    latents = np.random.default_rng(2).standard_normal((2, *size, 5)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())).sample
    assert relative_error(nnx.jit(AutoencoderKL.decode)(ours, jnp.asarray(latents)), expected) <= 2e-5


def test_every_key_and_shape_of_the_full_size_sd3_autoencoder_has_its_place() -> None:
    with torch.device("meta"):
        theirs = {ours_name(k): tuple(v.shape) for k, v in reference(sd3()).state_dict().items()}
    ours = Functional(lambda rngs: AutoencoderKL(sd3(), rngs=rngs)).shapes
    assert theirs.keys() == ours.keys()
    for name, shape in theirs.items():
        assert ours_value(np.broadcast_to(np.float32(0), shape)).shape == ours[name].shape, name
