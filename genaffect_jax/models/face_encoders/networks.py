"""Face encoders, from an image of a face to an identity or expression vector: residual, transformer, ArcFace's.

Encoders that condition a denoiser and encoders that evaluate its images differ on purpose, in sizes and seed, and for
expressions also in architecture (docs/guide/face_encoders.md#bundled-encoders).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from genaffect_jax.config.encoders import WHOLE, Crop, FaceEncoderConfig
from genaffect_jax.kernels.gradient_sums import spread
from genaffect_jax.models.autoencoder.model import Downsample, GroupNorm, ResnetBlock
from genaffect_jax.models.face_encoders.iresnet import IResNetTrunk
from genaffect_jax.models.layers import MLP, Linear, RMSNorm, conv

# About the standard deviation of a channel over training images (0.13 to 0.26). One optimizer step of the head then
# moves a channel by a small part of its spread.
EXPRESSION_SCALE = 0.2


def cropped(images: Float[Array, "B H W C"], crop: Crop, side: int) -> Float[Array, "B side side C"]:
    """A square part of square images, resized as in `resize`; its edges may lie between pixels.

    Raises:
        ValueError: the images are not square.
    """
    B, H, W, C = images.shape
    if crop == WHOLE or H != W:
        return resize(images, side)
    left, top, share = crop
    scale = side / (share * H)
    return jax.image.scale_and_translate(
        images, (B, side, side, C), (1, 2), jnp.full(2, scale), -scale * H * jnp.array([top, left]), "linear"
    )


def resize(images: Float[Array, "B H W C"], side: int) -> Float[Array, "B side side C"]:
    """Images resized to `side` x `side` pixels, linearly with antialiasing; images of this size stay unchanged.

    Raises:
        ValueError: the images are not square.
    """
    B, H, W, C = images.shape
    if H != W:
        raise ValueError(f"resize: images have shape {images.shape}; they must be square")
    if side == H:
        return images
    return jax.image.resize(images, (B, side, side, C), "linear", antialias=True)


class ResidualTrunk(nnx.Module):
    """Residual blocks at falling resolutions; every pixel of the last one keeps its place in the features.

    Flattening instead of averaging the last resolution follows ArcFace (Deng et al. 2019, section 3.1).
    """

    def __init__(self, config: FaceEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        groups, last = config.norm_num_groups, len(config.widths) - 1
        self.stem = conv(3, config.widths[0], stride=2, dtype=dtype, rngs=rngs)
        layers: list[nnx.Module] = []
        for i, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            previous = config.widths[max(i - 1, 0)]
            for j in range(depth):
                layers.append(ResnetBlock(width if j else previous, width, groups, dtype=dtype, rngs=rngs))
            if depth == 0 and previous != width:
                layers.append(conv(previous, width, size=1, dtype=dtype, rngs=rngs))
            if i < last:
                layers.append(Downsample(width, dtype=dtype, rngs=rngs))
        self.layers = nnx.List(layers)
        self.norm = GroupNorm(config.widths[-1], groups, silu=True, dtype=dtype)
        self.neck = conv(config.widths[-1], config.neck, size=1, dtype=dtype, rngs=rngs)
        self.features = config.neck * (config.image_size // config.downsample) ** 2

    def __call__(self, x: Float[Array, "B S S 3"]) -> Float[Array, "B F"]:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(self.norm(x)).reshape(len(x), -1)


class TransformerBlock(nnx.Module):
    """Pre-normalised self-attention and feed-forward, each residual."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm_attention = RMSNorm(width, dtype=dtype)
        self.query, self.key, self.value = (
            Linear(width, width, axes=("embed", "heads"), rngs=rngs, dtype=dtype) for _ in range(3)
        )
        self.out = Linear(width, width, axes=("heads", "embed"), rngs=rngs, dtype=dtype)
        self.norm_mlp = RMSNorm(width, dtype=dtype)
        self.mlp = MLP(width, 4 * width, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        y = self.norm_attention(x)
        q, k, v = (f(y).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value))
        x = x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        return x + self.mlp(self.norm_mlp(x))


class TransformerTrunk(nnx.Module):
    """A vision transformer (Dosovitskiy et al. 2021) over the pixels of a short stack of strided convolutions.

    A convolutional stem trains faster than a patch embedding (Xiao et al. 2021, arXiv 2106.14881).
    """

    def __init__(self, config: FaceEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        widths, width = (3, *config.widths), config.widths[-1]
        self.stem = nnx.List(
            [conv(widths[i], widths[i + 1], stride=2, dtype=dtype, rngs=rngs) for i in range(len(config.widths))]
        )
        self.norms = nnx.List([GroupNorm(c, config.norm_num_groups, silu=True, dtype=dtype) for c in config.widths])
        tokens = (config.image_size // config.downsample) ** 2
        # 0.02 is the usual deviation of learned positions (Dosovitskiy et al. 2021, reference code).
        position = 0.02 * jax.random.normal(rngs.params(), (tokens, width), jnp.float32)
        self.position = nnx.Param(position, logical_axes=(None, "embed"))
        self.blocks = nnx.List(
            [TransformerBlock(width, config.heads, dtype=dtype, rngs=rngs) for _ in range(config.depths[-1])]
        )
        self.norm = RMSNorm(width, dtype=dtype)
        self.features = width

    def __call__(self, x: Float[Array, "B S S 3"]) -> Float[Array, "B F"]:
        for layer, norm in zip(self.stem, self.norms, strict=True):
            x = norm(layer(x))
        x = x.reshape(len(x), -1, x.shape[-1])
        x = x + spread(self.position[...], x.shape, x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


TRUNKS: dict[str, type[ResidualTrunk | TransformerTrunk | IResNetTrunk]] = {
    "residual": ResidualTrunk,
    "transformer": TransformerTrunk,
    "iresnet": IResNetTrunk,
}


class FaceEncoder(nnx.Module):
    """Images in [-1, 1] to vectors, differentiable with respect to the images.

    Parameters and normalisation statistics are float32; convolutions and products run in `dtype`, the head in float32.
    """

    def __init__(self, config: FaceEncoderConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.trunk = TRUNKS[config.architecture](config, dtype=dtype, rngs=rngs)
        features = self.trunk.features
        self.head = (
            Linear(features, config.width, axes=("embed", None), rngs=rngs)
            if config.architecture == "iresnet"
            else MLP(features, config.hidden, config.width, axes=("embed", "mlp", None), rngs=rngs)
        )

    def __call__(self, images: Float[Array, "*batch S S 3"]) -> Float32[Array, "*batch W"]:
        """Vectors of square images of any size.

        Returns:
            Identity: vectors of Euclidean length 1. Expression: the plain regression, which may leave the channels'
            ranges, `expressions.action_units.LOWEST` to 1, a little.

        Raises:
            ValueError: the images are not square, or do not have three channels.
        """
        *batch, H, W, channels = images.shape
        if channels != 3:
            raise ValueError(f"face encoder: images have shape {images.shape}; channels must be 3")
        x = cropped(images.reshape(-1, H, W, 3).astype(jnp.float32), self.config.crop, self.config.image_size)
        y = self.head(self.trunk(x).astype(jnp.float32)).reshape(*batch, -1)
        return unit(y) if self.config.target == "identity" else EXPRESSION_SCALE * y


def unit(x: Float[Array, "*batch W"]) -> Float32[Array, "*batch W"]:
    """Vectors scaled to Euclidean length 1; a vector of zeros stays."""
    x = x.astype(jnp.float32)
    # The floor keeps the gradient finite at zero; 1e-12 is far below any length that occurs.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
