"""The autoencoder is the same function as diffusers' AutoencoderKL."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.interop.diffusers.weights import load_autoencoder
from genaffect_jax.models.autoencoder.model import AutoencoderKL

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support.diffusers_models import AUTOENCODERS, autoencoder, randomised  # noqa: E402 (needs torch)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=AUTOENCODERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A diffusers autoencoder, and ours loaded from the folder that diffusers wrote."""
    theirs = randomised(autoencoder(AUTOENCODERS[request.param]))
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    ours = load_autoencoder(folder)
    assert ours.config == AUTOENCODERS[request.param]
    return theirs, ours


def relative_error(ours: jax.Array, theirs: torch.Tensor) -> float:
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("size", [(24, 40), (44, 12)])
def test_encode_gives_the_mean_and_log_variance_of_diffusers(pair, size) -> None:
    theirs, ours = pair
    images = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).latent_dist
    posterior = nnx.jit(AutoencoderKL.encode)(ours, jnp.asarray(images))
    assert relative_error(posterior.mean, expected.mean) <= 2e-5
    assert relative_error(posterior.logvar, expected.logvar) <= 2e-5
    np.testing.assert_allclose(posterior.kl(), expected.kl().numpy(), rtol=1e-4)


@pytest.mark.parametrize("size", [(6, 10), (11, 3)])
def test_decode_gives_the_images_of_diffusers(pair, size) -> None:
    theirs, ours = pair
    latents = np.random.default_rng(2).standard_normal((2, *size, 5)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())).sample
    assert relative_error(nnx.jit(AutoencoderKL.decode)(ours, jnp.asarray(latents)), expected) <= 2e-5
