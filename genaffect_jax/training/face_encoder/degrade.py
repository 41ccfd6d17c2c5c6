"""Degraded images of the same person with the same expression, made on the device.

Encoders have to read samples of a denoiser, which are soft, speckled and a little displaced. No image is mirrored
(left and right action units are different channels), turned (the head's roll is a channel) or recoloured (hair and skin
belong to the person).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key, UInt8

from genaffect_jax.config.encoders import DegradeConfig
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional, Parameters

_BLOCK = 8  # side of a transform block, as in JPEG
_BLUR_SHARE, _NOISE_SHARE, _QUANTISE_SHARE = 0.5, 0.5, 0.3


def make_degrade(
    config: DegradeConfig, autoencoder: Functional[AutoencoderKL] | None
) -> Callable[[Parameters, UInt8[Array, "B S S 3"], Key[Array, ""]], Float32[Array, "B S S 3"]]:
    """Builds `degrade(autoencoder_parameters, images, key)`: uint8 images to degraded ones in [-1, 1].

    Every image is moved and scaled (edges are continued), blurred, tinted, made noisy and quantised by random amounts
    of its own, up to those of `config`. Before that, a share `config.autoencoder_share` of the images, evenly spread,
    passes through the autoencoder with noise on the latents. The side S must be a multiple of 8.
    """

    def soften(parameters: Parameters, x: Float32[Array, "B S S 3"], key: Key[Array, ""]) -> Float32[Array, "B S S 3"]:
        count = round(config.autoencoder_share * len(x))
        if autoencoder is None or count == 0:
            return x
        # Evenly spread, so that the work is divided evenly over the devices that hold the batch.
        chosen = np.arange(count) * len(x) // count
        model = autoencoder.merge(parameters)
        level_key, noise_key = jax.random.split(key)
        latents = model.to_latents(x[chosen])
        level = jax.random.uniform(level_key, (count, 1, 1, 1), maxval=config.latent_noise)
        decoded = model.from_latents(latents + level * jax.random.normal(noise_key, latents.shape))
        return x.at[chosen].set(jnp.clip(decoded, -1.0, 1.0))

    def degrade(
        parameters: Parameters, images: UInt8[Array, "B S S 3"], key: Key[Array, ""]
    ) -> Float32[Array, "B S S 3"]:
        B, S, _, _ = images.shape
        keys = iter(jax.random.split(key, 10))

        def uniform(largest: float, channels: int = 1) -> Float32[Array, "B 1 1 c"]:
            return jax.random.uniform(next(keys), (B, 1, 1, channels), minval=-largest, maxval=largest)

        def sometimes(share: float) -> Float32[Array, " B"]:
            """Uniform in [0, 1] for a share of the images, 0 for the others."""
            on_key, amount_key = jax.random.split(next(keys))
            return jax.random.bernoulli(on_key, share, (B,)) * jax.random.uniform(amount_key, (B,))

        x = soften(parameters, normalise(images), next(keys))
        zoom, shift = 1.0 + uniform(config.zoom)[:, 0, 0, 0], uniform(config.shift, 2)[:, 0, 0] * S
        sigma = config.blur * sometimes(_BLUR_SHARE)
        rows, columns = (_blur(S, sigma) @ _move(S, zoom, shift[:, axis]) for axis in (0, 1))
        x = jnp.einsum("bij,bjkc,blk->bilc", rows, x, columns)
        x = x * (1.0 + uniform(config.gain)) + uniform(config.gain) + uniform(2.0 * config.tint, 3)
        noise = jax.random.normal(next(keys), x.shape)
        x = x + 2.0 * config.noise * sometimes(_NOISE_SHARE)[:, None, None, None] * noise
        x = quantise(x, 2.0 * config.quantise * sometimes(_QUANTISE_SHARE))
        return jnp.clip(x, -1.0, 1.0)

    return degrade


def quantise(x: Float[Array, "B S S 3"], step: Float[Array, " B"]) -> Float[Array, "B S S 3"]:
    """Rounds the discrete cosine coefficients of 8 x 8 blocks, as JPEG does, to steps that grow with frequency.

    Coefficient (u, v) has the step `step * (1 + u + v) / 8`; a step of 0 leaves an image as it is.
    """
    B, S, _, C = x.shape
    k = np.arange(_BLOCK)
    basis = np.sqrt(2 / _BLOCK) * np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / (2 * _BLOCK))
    basis[0] /= np.sqrt(2)  # orthonormal: its transpose is its inverse
    basis = basis.astype(np.float32)
    blocks = x.reshape(B, S // _BLOCK, _BLOCK, S // _BLOCK, _BLOCK, C)
    coefficients = jnp.einsum("ui,bxiyjc,vj->bxuyvc", basis, blocks, basis, precision="highest")
    steps = step[:, None, None, None, None, None] * ((1 + k[:, None, None] + k[:, None]) / _BLOCK)[:, None]
    rounded = jnp.where(steps > 0, jnp.round(coefficients / jnp.maximum(steps, 1e-6)) * steps, coefficients)
    return jnp.einsum("ui,bxuyvc,vj->bxiyjc", basis, rounded, basis, precision="highest").reshape(x.shape)


def _move(side: int, zoom: Float[Array, " B"], shift: Float[Array, " B"]) -> Float32[Array, "B S S"]:
    """Matrices of linear interpolation: row i of a matrix reads the place that moves to i."""
    middle = (side - 1) / 2
    place = (jnp.arange(side) - middle - shift[:, None]) / zoom[:, None] + middle
    return _hat(jnp.clip(place, 0.0, side - 1.0)[..., None] - jnp.arange(side))


def _hat(distance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def _blur(side: int, sigma: Float[Array, " B"]) -> Float32[Array, "B S S"]:
    """Matrices of a Gaussian blur along one axis; a sigma near 0 gives the identity."""
    places = jnp.arange(side)
    weights = jnp.exp(-0.5 * jnp.square((places[:, None] - places) / jnp.maximum(sigma, 0.05)[:, None, None]))
    return weights / weights.sum(-1, keepdims=True)
