"""The image autoencoder: AutoencoderKL as SD3 uses it, in NHWC.

Network of Rombach et al. 2022 (arXiv 2112.10752, appendix G) with the settings of SD3 (Esser et al. 2024, arXiv
2403.03206, section 5.2.1): no quantisation convolutions, single-head attention in both middle blocks, latents shifted
and scaled. Module names are those of the diffusers weights, so that a key table stays short.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import lecun_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Key, UInt8

from genaffect_jax.config import AutoencoderConfig
from genaffect_jax.kernels.convolution import convolve
from genaffect_jax.kernels.fused_bias import add_bias
from genaffect_jax.kernels.group_norm import group_norm
from genaffect_jax.models.layers import VECTOR_AXES, Linear, conv

NORM_EPSILON = 1e-6  # diffusers resnet_eps of the autoencoder (not torch's 1e-5)
LOGVAR_RANGE = (-30.0, 20.0)  # DiagonalGaussianDistribution of the latent diffusion code base
LINEAR_AXES = ("conv_in", "conv_out")


def normalise(images: UInt8[Array, "*batch H W C"]) -> Float32[Array, "*batch H W C"]:
    """Bytes 0..255 to numbers in [-1, 1].

    Raises:
        TypeError: the images are not uint8 (numbers already scaled would silently become nearly black).
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"normalise: images have dtype {images.dtype}, must be uint8")
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "*batch H W C"]) -> UInt8[Array, "*batch H W C"]:
    """Numbers in [-1, 1] to bytes, rounded to nearest; values outside are clipped. Inverse of `normalise`."""
    return jnp.round((jnp.clip(images.astype(jnp.float32), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over unscaled latents, in float32."""

    mean: Float32[Array, "*batch h w c"]
    """Mean."""
    logvar: Float32[Array, "*batch h w c"]
    """Logarithm of the variance, within LOGVAR_RANGE."""

    def sample(self, key: Key[Array, ""]) -> Float32[Array, "*batch h w c"]:
        """One sample, reparametrised so that gradients flow through it."""
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mode(self) -> Float32[Array, "*batch h w c"]:
        """The most likely latents: the mean."""
        return self.mean

    def kl(self) -> Float32[Array, "*batch"]:
        """KL divergence to the unit Gaussian in nats, summed over each image (Kingma & Welling 2014, app. B)."""
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar, axis=(-3, -2, -1))


def _linear(channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> Linear:
    return Linear(channels, channels, axes=LINEAR_AXES, kernel_init=lecun_normal(), rngs=rngs, dtype=dtype)


class GroupNorm(nnx.Module):
    """Group normalisation, optionally followed by SiLU (`kernels.group_norm`); statistics in float32.

    Computes in and returns `dtype`.
    """

    def __init__(self, channels: int, groups: int, *, silu: bool, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones(channels), logical_axes=VECTOR_AXES)
        self.bias = nnx.Param(jnp.zeros(channels), logical_axes=VECTOR_AXES)
        self.groups, self.silu, self.dtype = groups, silu, dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return group_norm(x, self.scale[...], self.bias[...], self.groups, NORM_EPSILON, self.silu).astype(self.dtype)


class ResnetBlock(nnx.Module):
    """Two normalised 3x3 convolutions beside a shortcut (1x1 convolution where the width changes)."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm1 = GroupNorm(inputs, groups, silu=True, dtype=dtype)
        self.conv1 = conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups, silu=True, dtype=dtype)
        self.conv2 = conv(outputs, outputs, dtype=dtype, rngs=rngs)
        self.conv_shortcut = None if inputs == outputs else conv(inputs, outputs, size=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all pixels, residual; softmax in float32."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.group_norm = GroupNorm(channels, groups, silu=False, dtype=dtype)
        self.to_q = _linear(channels, dtype=dtype, rngs=rngs)
        self.to_k = _linear(channels, dtype=dtype, rngs=rngs)
        self.to_v = _linear(channels, dtype=dtype, rngs=rngs)
        self.to_out = _linear(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        B, H, W, C = x.shape
        tokens = self.group_norm(x).reshape(B, H * W, 1, C)  # one head as wide as the block
        mixed = jax.nn.dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out(mixed).reshape(B, H, W, C)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.resnets = nnx.List([ResnetBlock(channels, channels, groups, dtype=dtype, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List([AttentionBlock(channels, groups, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nnx.Module):
    """3x3 convolution with stride 2; zero padding at the bottom and right edge only, as in the reference."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, channels, stride=2, padding=(0, 1), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Every pixel becomes 2x2 equal pixels, then a 3x3 convolution.

    The enlarged image is never made. Output pixels of one (row, column) parity depend on only 2x2 different inputs, so
    that each parity is a 2x2 convolution of the small image with sums of kernel entries (sub-pixel convolution, Shi et
    al. 2016, arXiv 1609.05158). That takes 4/9 of the multiplications.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        B, h, w, C = x.shape
        # [parity, tap of the small kernel, tap of the 3x3 kernel]: 1 where the entry falls on that input pixel.
        same_pixel = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], jnp.float32)
        kernels = jnp.einsum("pak,qbl,klio->pqabio", same_pixel, same_pixel, self.conv.kernel[...], precision="highest")
        kernels = kernels.astype(self.conv.dtype)

        def phase(p: int, q: int) -> Float[Array, "B h w C"]:
            return convolve(x, kernels[p, q], (1, 1), ((1 - p, p), (1 - q, q)))

        rows = [jnp.concatenate([phase(p, 0), phase(p, 1)], -1) for p in (0, 1)]  # column parities, pixel by pixel
        y = jnp.stack(rows, 2).reshape(B, 2 * h, 2 * w, C)
        assert self.conv.bias is not None
        return add_bias(y, self.conv.bias[...])


class Resolution(nnx.Module):
    """The residual blocks of one resolution, and the step to the next resolution if there is one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        layers: int,
        groups: int,
        *,
        step: type[Downsample] | type[Upsample] | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        widths = [inputs] + [outputs] * layers
        self.resnets = nnx.List(
            [ResnetBlock(a, b, groups, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        self.resampler = None if step is None else step(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.resampler is None else self.resampler(x)


class Encoder(nnx.Module):
    """Images to the two moments of the latents, stacked along the channels."""

    def __init__(self, config: AutoencoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        widths, groups, last = config.block_out_channels, config.norm_num_groups, len(config.block_out_channels) - 1
        self.conv_in = conv(config.in_channels, widths[0], dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                Resolution(
                    widths[max(i - 1, 0)],
                    widths[i],
                    config.layers_per_block,
                    groups,
                    step=Downsample if i < last else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(len(widths))
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups, dtype=dtype, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups, silu=True, dtype=dtype)
        # Channels of latents and images are too few to be cut over devices.
        self.conv_out = conv(widths[-1], 2 * config.latent_channels, dtype=dtype, rngs=rngs, shard_outputs=False)

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w 2*c"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nnx.Module):
    """Unscaled latents to images."""

    def __init__(self, config: AutoencoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        widths, groups, last = (
            config.block_out_channels[::-1],
            config.norm_num_groups,
            len(config.block_out_channels) - 1,
        )
        self.conv_in = conv(config.latent_channels, widths[0], dtype=dtype, rngs=rngs)
        self.mid_block = MidBlock(widths[0], groups, dtype=dtype, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                Resolution(
                    widths[max(i - 1, 0)],
                    widths[i],
                    config.layers_per_block + 1,
                    groups,
                    step=Upsample if i < last else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(len(widths))
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups, silu=True, dtype=dtype)
        self.conv_out = conv(widths[-1], config.out_channels, dtype=dtype, rngs=rngs, shard_outputs=False)

    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(nnx.Module):
    """Images to latents and back.

    Parameters and normalisation statistics are float32; convolutions and products run in `dtype`.
    """

    def __init__(self, config: AutoencoderConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)

    def encode(self, images: Float[Array, "*batch H W 3"]) -> Posterior:
        """The distribution of the unscaled latents of images in [-1, 1].

        Raises:
            ValueError: height or width is no multiple of `config.downsample`, or the channels are wrong.
        """
        *batch, H, W, channels = images.shape
        factor = self.config.downsample
        if H % factor or W % factor or channels != self.config.in_channels:
            raise ValueError(
                f"encode: images have shape {images.shape}; height and width must be multiples of "
                f"{factor}, channels must be {self.config.in_channels}"
            )
        moments = self.encoder(images.reshape(-1, H, W, channels)).astype(jnp.float32)
        mean, logvar = jnp.split(moments.reshape(*batch, H // factor, W // factor, -1), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, z: Float[Array, "*batch h w c"]) -> Float32[Array, "*batch H W 3"]:
        """Images, about [-1, 1] and not clipped, from unscaled latents.

        Raises:
            ValueError: the channels are not `config.latent_channels`.
        """
        *batch, h, w, channels = z.shape
        if channels != self.config.latent_channels:
            raise ValueError(f"decode: latents have shape {z.shape}; channels must be {self.config.latent_channels}")
        images = self.decoder(z.reshape(-1, h, w, channels)).astype(jnp.float32)
        return images.reshape(*batch, *images.shape[1:])

    def to_latents(self, images: Float[Array, "*batch H W 3"]) -> Float32[Array, "*batch h w c"]:
        """The denoiser's latents of images in [-1, 1]: `(mode - shift_factor) * scaling_factor`."""
        return (self.encode(images).mode() - self.config.shift_factor) * self.config.scaling_factor

    def from_latents(self, latents: Float[Array, "*batch h w c"]) -> Float32[Array, "*batch H W 3"]:
        """Images from the denoiser's latents: the inverse of `to_latents`."""
        return self.decode(self.unscaled(latents))

    def unscaled(self, latents: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h w c"]:
        """Unscaled latents, as `decode` takes them, from the denoiser's latents."""
        return latents / self.config.scaling_factor + self.config.shift_factor
