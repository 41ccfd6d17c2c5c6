"""The autoencoder's loss: sharp reconstructions, and a weak pull of the latents towards a unit Gaussian.

It has no adversarial and no pretrained part. Drawn images are flat areas and thin outlines, for which absolute errors
of the image and of its finite differences at several scales measure most of what a perceptual network would.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key, UInt8

from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.training.step import Terms

EDGE_SCALES = (1, 2, 4)  # an outline of a 128 px avatar is 1 to 4 px wide


def _halve(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


def _absolute(x: Float[Array, "*shape"]) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    return jnp.abs(x).sum(), jnp.float32(x.size)


def autoencoder_loss(
    model: AutoencoderKL,
    images: UInt8[Array, "B S S 3"],
    key: Key[Array, ""],
    *,
    kl_weight: float,
    edge_weight: float,
) -> tuple[Float32[Array, ""], Terms]:
    """Loss of reconstructing images from latents sampled with `key`, and its terms as (sum, count).

    `total = l1 + edge_weight * mean over scales s of edge_s + kl_weight * kl`, each term being its sum over its count.
    `l1` is the absolute error in units of the range [-1, 1]; `edge_s` is the absolute error of horizontal and vertical
    differences of neighbouring pixels after averaging s x s pixels (the gradient difference loss of Mathieu et al.
    2016, arXiv 1511.05440, section 3.2, signed and at several scales); `kl` is the divergence of the posterior from
    a unit Gaussian in nats per latent number.

    Raises:
        ValueError: the side S is not a multiple of the largest edge scale.
    """
    if images.shape[1] % EDGE_SCALES[-1] or images.shape[2] % EDGE_SCALES[-1]:
        raise ValueError(
            f"autoencoder_loss: images have shape {images.shape}; height and width must be multiples "
            f"of {EDGE_SCALES[-1]}"
        )
    target = normalise(images)
    posterior = model.encode(target)
    # The loss is linear in the error, so differences and averages of the error are those of the two images.
    error = model.decode(posterior.sample(key)) - target
    terms: Terms = {"l1": _absolute(error)}
    for scale in EDGE_SCALES:
        vertical, horizontal = (_absolute(jnp.diff(error, axis=axis)) for axis in (1, 2))
        terms[f"edge_{scale}"] = (vertical[0] + horizontal[0], vertical[1] + horizontal[1])
        if scale != EDGE_SCALES[-1]:
            error = _halve(error)
    terms["kl"] = (posterior.kl().sum(), jnp.float32(posterior.mean.size))
    mean = {name: total / count for name, (total, count) in terms.items()}
    edge = sum(mean[f"edge_{scale}"] for scale in EDGE_SCALES) / len(EDGE_SCALES)
    return mean["l1"] + edge_weight * edge + kl_weight * mean["kl"], terms


def jitter(images: UInt8[Array, "B S S 3"], key: Key[Array, ""]) -> UInt8[Array, "B S S 3"]:
    """Images moved by up to seven pixels (wrapped around), mirrored and tinted at random.

    The tint is one gain per channel in [0.8, 1.2], and with probability 1/4 the channels change places.
    """
    move_key, mirror_key, gain_key, swap_key, order_key = jax.random.split(key, 5)
    batch = len(images)
    moves = jax.random.randint(move_key, (batch, 2), -7, 8)
    moved = jax.vmap(lambda image, move: jnp.roll(image, move, (0, 1)))(images, moves)
    mirrored = jnp.where(jax.random.bernoulli(mirror_key, 0.5, (batch, 1, 1, 1)), moved[:, :, ::-1], moved)
    orders = jax.vmap(lambda k: jax.random.permutation(k, 3))(jax.random.split(order_key, batch))
    swapped = jax.vmap(lambda image, order: image[..., order])(mirrored, orders)
    mixed = jnp.where(jax.random.bernoulli(swap_key, 0.25, (batch, 1, 1, 1)), swapped, mirrored)
    gains = jax.random.uniform(gain_key, (batch, 1, 1, 3), minval=0.8, maxval=1.2)
    return jnp.clip(jnp.round(mixed * gains), 0, 255).astype(jnp.uint8)


def latent_statistics(model: AutoencoderKL, images: UInt8[Array, "B H W 3"]) -> tuple[float, float]:
    """The shift and scaling factors that give these images' latents mean 0 and standard deviation 1.

    Each is one number for all channels, as in SD3's autoencoder. The images go through the encoder in one call.

    Raises:
        ValueError: the latents do not vary, so that no scale exists.
    """
    z = jax.jit(lambda x: model.encode(normalise(x)).mode())(images)
    shift, deviation = float(z.mean()), float(z.std())
    if not deviation > 0:
        raise ValueError(f"latent_statistics: the latents' standard deviation is {deviation}, must be positive")
    return shift, 1.0 / deviation
