"""ArcFace's IResNet for inference, with batch normalisations folded into convolutions.

Network of Duta et al. 2020 (arXiv 2004.04989) as in the public ArcFace weights (Deng et al. 2019, arXiv 1801.07698). A
trained batch normalisation is a factor and a shift per channel. After a convolution it is folded into the convolution's
kernel and bias. Before a convolution it stays a layer of its own, `ChannelAffine`, because folding would also shift the
zeros beyond the edge. `interop.arcface.weights` does the folding.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.kernels.gradient_sums import spread
from genaffect_jax.models.layers import VECTOR_AXES, conv

PRELU_SLOPE = 0.25  # where a PReLU starts (He et al. 2015, section 2.1)


class ChannelAffine(nnx.Module):
    """A factor and a shift per channel: a batch normalisation that contains its statistics."""

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32), logical_axes=VECTOR_AXES)
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32), logical_axes=VECTOR_AXES)

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return x * spread(self.scale[...], x.shape, x.dtype) + spread(self.bias[...], x.shape, x.dtype)


class PReLU(nnx.Module):
    """`x` where it is positive, a learned multiple per channel elsewhere (He et al. 2015, arXiv 1502.01852)."""

    def __init__(self, channels: int) -> None:
        self.slope = nnx.Param(jnp.full((channels,), PRELU_SLOPE, jnp.float32), logical_axes=VECTOR_AXES)

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return jnp.where(x > 0, x, x * spread(self.slope[...], x.shape, x.dtype))


class IResNetBlock(nnx.Module):
    """Two convolutions beside a shortcut; the second one and the shortcut halve the resolution if `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm = ChannelAffine(inputs)
        self.conv1 = conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.prelu = PReLU(outputs)
        self.conv2 = conv(outputs, outputs, stride=stride, dtype=dtype, rngs=rngs)
        plain = stride == 1 and inputs == outputs
        self.shortcut = None if plain else conv(inputs, outputs, size=1, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        y = self.conv2(self.prelu(self.conv1(self.norm(x))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class IResNetTrunk(nnx.Module):
    """The network before its linear head; the last resolution is flattened, so that every pixel keeps its place."""

    def __init__(self, config: FaceEncoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        inputs = config.widths[0]
        self.stem = conv(3, inputs, dtype=dtype, rngs=rngs)
        self.prelu = PReLU(inputs)
        blocks = []
        for width, depth in zip(config.widths, config.depths, strict=True):
            for j in range(depth):
                blocks.append(IResNetBlock(width if j else inputs, width, 1 if j else 2, dtype=dtype, rngs=rngs))
            inputs = width
        self.blocks = nnx.List(blocks)
        self.norm = ChannelAffine(inputs)
        self.features = inputs * (config.image_size // config.downsample) ** 2

    def __call__(self, x: Float[Array, "B S S 3"]) -> Float[Array, "B F"]:
        x = self.prelu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x).reshape(len(x), -1)
