"""What enters and leaves the transformer: patches, positions, timesteps, and the modulation made from them."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array, Float

from genaffect_jax.models.layers import MLP, Bias, Linear

# Sinusoidal features of DDPM (Ho et al. 2020, arXiv 2006.11239) in the size that the SD3 family uses.
TIMESTEP_FEATURES = 256
TIMESTEP_MAX_PERIOD = 10000.0


class Embedder(MLP):
    """Two linear layers with SiLU between them; it embeds timesteps, pooled text and expression vectors."""

    def product_and_bias(self, x: Float[Array, "*batch i"]) -> tuple[Float[Array, "*batch o"], Bias]:
        """The result before its last bias is added, and that bias."""
        return self.down.product_and_bias(nnx.silu(self.up(x)))


class Modulation(nnx.Module):
    """The linear map of adaLN-Zero (Peebles and Xie 2023, arXiv 2212.09748, section 3.2): shifts, scales and gates.

    It starts at zero, so that a new block is the identity. Sums and results are float32 in a model of any type, because
    they multiply whole residual branches.
    """

    def __init__(self, width: int, count: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> None:
        self.count = count
        self.linear = Linear(
            width, count * width, axes=("embed", None), kernel_init=zeros, rngs=rngs, dtype=dtype, out_dtype=jnp.float32
        )

    def __call__(self, activated: Float[Array, "*batch D"]) -> list[Float[Array, "*batch 1 D"]]:
        """`count` vectors with an axis for the tokens, from the timestep embedding after SiLU."""
        return jnp.split(self.linear(activated)[..., None, :], self.count, axis=-1)


def timestep_features(timestep: Float[Array, "*batch"]) -> Float[Array, "*batch 256"]:
    """Sinusoidal features of a timestep in [0, 1000], cosines first (diffusers' `flip_sin_to_cos`, no shift)."""
    half = TIMESTEP_FEATURES // 2
    # Rounded as in diffusers (float32 exponents), because timesteps up to 1000 amplify the last bit of a frequency.
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
        base_side: tokens per side of the images that the model was trained on.

    Raises:
        ValueError: the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sincos_table: width {width} must be a multiple of 4 (sine and cosine of two axes)")
    positions = np.arange(side, dtype=np.float32) / np.float32(side / base_side)
    omega = 1.0 / 10000.0 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    angles = positions.astype(np.float64)[:, None] * omega
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    # Built from one axis: the table itself (0.9 GB in SD3.5-medium) would be a constant of the program that makes it.
    columns = jnp.broadcast_to(axis[None, :, :], (side, side, width // 2))
    rows = jnp.broadcast_to(axis[:, None, :], (side, side, width // 2))
    return jnp.concatenate([columns, rows], axis=-1)


def patchify(x: Float[Array, "*batch h w c"], patch: int) -> Float[Array, "*batch L ppc"]:
    """Cuts images into tokens of `patch` x `patch` pixels, row by row; a remainder at right or bottom is dropped."""
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
