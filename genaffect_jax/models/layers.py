"""Small layers that every network here is made of, and the stack that runs equal layers as one scan.

Parameters are float32 and carry `logical_axes` (a plain metadata tuple, one name or None per axis) that
`parallel` maps to mesh axes. Layers compute in the `dtype` they are given; normalisations and modulation in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, variance_scaling, zeros
from jaxtyping import Array, Float

from genaffect_jax.kernels.fused_bias import add_bias
from genaffect_jax.kernels.fused_mlp import gelu_products
from genaffect_jax.kernels.matmul import matmul
from genaffect_jax.kernels.norms import rms_norm
from genaffect_jax.kernels.remat import keep_product

TIMESTEP_FEATURES = 256
TIMESTEP_MAX_PERIOD = 10000.0

xavier_uniform: Initializer = variance_scaling(1.0, "fan_avg", "uniform")


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis.

    Args:
        in_features, out_features: widths.
        axes: logical names of the kernel's two axes.
        use_bias: whether there is a bias.
        kernel_init, bias_init: initialisers.
        rngs: source of the initial values.
        dtype: type of what is multiplied.
        out_dtype: type of the sums and of the result; `dtype` if left out.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None],
        use_bias: bool = True,
        kernel_init: Initializer = xavier_uniform,
        bias_init: Initializer = zeros,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        out_dtype: Any = None,
    ) -> None:
        self.dtype, self.out_dtype = dtype, dtype if out_dtype is None else out_dtype
        shape = (in_features, out_features)
        kernel = kernel_init(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel, logical_axes=axes, compute_dtypes=dtype)
        bias = bias_init(rngs.params(), (out_features,), jnp.float32)
        self.bias = nnx.Param(bias, logical_axes=(None,)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return self.biased(self.product(x))

    def product(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """`x @ kernel`, without the bias."""
        return matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.out_dtype)

    def biased(self, product: Float[Array, "*batch o"]) -> Float[Array, "*batch o"]:
        """The product with the bias, if there is one."""
        return keep_product(product if self.bias is None else add_bias(product, self.bias[...]))


def joined_product(x: Float[Array, "*batch i"], layers: Sequence[Linear]) -> Float[Array, "*batch n*o"]:
    """What `Linear.product` of n layers of one width and type makes of `x`, computed as one product."""
    dtype = layers[0].dtype
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    return matmul(x.astype(dtype), kernel.astype(dtype), dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation of the last axis with a learned scale (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, *, initial_scale: float = 1.0, dtype: Any = jnp.float32) -> None:
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full((features,), initial_scale, jnp.float32), logical_axes=(None,))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return rms_norm(x, self.scale[...]).astype(self.dtype)


class MLP(nnx.Module):
    """Two linear layers around GELU in its tanh form: the transformer's feed-forward network."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None, str | None] = ("embed", "mlp", "embed"),
        up_init: Initializer = xavier_uniform,
        down_init: Initializer = xavier_uniform,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        common: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.up = Linear(in_features, hidden_features, axes=axes[:2], kernel_init=up_init, **common)
        self.down = Linear(hidden_features, out_features, axes=axes[1:], kernel_init=down_init, **common)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return self.down.biased(self.product(x))

    def product(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The result without its bias."""
        up, down = self.up, self.down
        assert up.bias is not None
        return gelu_products(x, up.kernel[...], up.bias[...], down.kernel[...], up.dtype)


class Embedder(MLP):
    """Two linear layers around SiLU: what embeds timesteps and other vectors."""

    def product(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The result without its bias."""
        return self.down.product(nnx.silu(self.up(x)))


class Modulation(nnx.Module):
    """The linear map of an adaLN layer: shifts, scales and gates of one block from the timestep embedding.

    Initialised to zero (adaLN-Zero, Peebles and Xie 2023, arXiv 2212.09748): a new block is the identity.
    Sums and results are float32 whatever the model's type, as they multiply whole residual branches.
    """

    def __init__(self, width: int, count: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.count = count
        self.linear = Linear(
            width, count * width, axes=("embed", None), kernel_init=zeros, rngs=rngs, dtype=dtype, out_dtype=jnp.float32
        )

    def __call__(self, activated: Float[Array, "*batch D"]) -> list[Float[Array, "*batch 1 D"]]:
        """`count` vectors, with an axis for the tokens, from the already activated (SiLU) timestep embedding."""
        return jnp.split(self.linear(activated)[..., None, :], self.count, axis=-1)


def timestep_features(timestep: Float[Array, "*batch"]) -> Float[Array, "*batch 256"]:
    """Sinusoidal features of a timestep in [0, 1000], cosines first (DDPM's with flip_sin_to_cos, no shift)."""
    half = TIMESTEP_FEATURES // 2
    # Rounded as the reference rounds (float32 exponents): timesteps up to 1000 amplify the last bit of a frequency.
    exponents = np.float32(-math.log(TIMESTEP_MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = timestep.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_table(side: int, width: int, base_side: int) -> Float[Array, "side side D"]:
    """The 2-D sin-cos position table of SD3's patch embedding.

    The first half of the width encodes the column, the second half the row; positions run from 0 to `base_side`.

    Args:
        side: rows and columns of the table, in tokens.
        width: D, a multiple of 4.
        base_side: tokens a side of the images the model was trained on.
    """
    if width % 4:
        raise ValueError(f"sincos_table: width {width} must be a multiple of 4 (sine and cosine of two axes)")
    positions = np.arange(side, dtype=np.float32) / np.float32(side / base_side)
    omega = 1.0 / 10000.0 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    angles = positions.astype(np.float64)[:, None] * omega
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    # Only the axis is a constant of a program that makes the table: SD3.5-medium's table has 0.9 GB.
    columns = jnp.broadcast_to(axis[None, :, :], (side, side, width // 2))
    rows = jnp.broadcast_to(axis[:, None, :], (side, side, width // 2))
    return jnp.concatenate([columns, rows], axis=-1)


def patchify(x: Float[Array, "*batch h w c"], patch: int) -> Float[Array, "*batch L ppc"]:
    """Cuts images into `patch` x `patch` tokens, row by row; a remainder at the right or bottom is dropped."""
    *batch, h, w, c = x.shape
    rows, columns = h // patch, w // patch
    x = x[..., : rows * patch, : columns * patch, :].reshape(*batch, rows, patch, columns, patch, c)
    return jnp.swapaxes(x, -4, -3).reshape(*batch, rows * columns, patch * patch * c)


def unpatchify(x: Float[Array, "*batch L ppc"], patch: int, rows: int, columns: int) -> Float[Array, "*batch h w c"]:
    """The inverse of `patchify` for a grid of `rows` x `columns` tokens."""
    *batch, _, ppc = x.shape
    c = ppc // patch**2
    x = jnp.swapaxes(x.reshape(*batch, rows, columns, patch, patch, c), -4, -3)
    return x.reshape(*batch, rows * patch, columns * patch, c)
