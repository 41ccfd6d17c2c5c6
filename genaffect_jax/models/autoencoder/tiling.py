"""Encoding and decoding in overlapping tiles, so that memory does not grow with the image.

Tiles of one size are computed one after the other and blended where they overlap: at every pixel the weights of all
tiles add up to 1. The result differs from that of the whole image, because group normalisations take their statistics,
and the attention its keys, from one tile alone. docs/notes/memory.md#autoencoder-in-tiles says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from genaffect_jax.models.autoencoder.model import AutoencoderKL, Posterior

# In latent pixels. A tile of 64 is 512 px, which fits into any memory. An overlap of 16 is 128 px, over which a
# difference between tiles becomes a slow drift instead of an edge.
TILE, OVERLAP = 64, 16


@dataclass(frozen=True)
class Tiles:
    """Equal tiles that cover one axis; computed before tracing.

    Attributes:
        size: length of every tile.
        starts: first place of each tile, increasing from 0; neighbours overlap.
    """

    size: int
    starts: tuple[int, ...]

    @classmethod
    def cover(cls, length: int, tile: int, overlap: int) -> Tiles:
        """The fewest tiles that cover `length` places with at least `overlap` in common between neighbours.

        Tiles are spread evenly, so that none needs padding. An axis shorter than a tile is one tile.

        Raises:
            ValueError: `overlap` does not lie in 0..`tile` - 1.
        """
        if not 0 <= overlap < tile:
            raise ValueError(f"tiles: overlap {overlap} must lie in 0..{tile - 1} (tile {tile})")
        size = min(tile, length)
        count = 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))
        return cls(size, tuple(i * (length - size) // max(count - 1, 1) for i in range(count)))

    def weights(self, scale: int) -> Float32[np.ndarray, "tiles size*scale"]:
        """Weight of each tile at each of its places, on a grid `scale` times finer; weights of one place add up to 1.

        A weight falls linearly to zero over the overlap with a neighbour.
        """
        length, fine = (self.starts[-1] + self.size) * scale, self.size * scale
        raw = np.ones((len(self.starts), fine))
        for left in range(len(self.starts) - 1):
            common = (self.starts[left] + self.size - self.starts[left + 1]) * scale
            ramp = (np.arange(common) + 0.5) / max(common, 1)
            raw[left + 1, :common] *= ramp
            raw[left, fine - common :] *= ramp[::-1]
        total = np.zeros(length)  # already 1 where at most two tiles overlap
        for start, weight in zip(self.starts, raw, strict=True):
            total[start * scale : start * scale + fine] += weight
        return np.stack(
            [weight / total[s * scale : s * scale + fine] for s, weight in zip(self.starts, raw, strict=True)]
        ).astype(np.float32)


def decode_tiled(
    model: AutoencoderKL, z: Float[Array, "*batch h w c"], tile: int = TILE, overlap: int = OVERLAP
) -> Float32[Array, "*batch H W 3"]:
    """`model.decode` tile by tile and image by image: images, about [-1, 1], from unscaled latents.

    If one tile covers the latents, this is `model.decode` itself. Any height and width. Within a jitted program, the
    activations of one tile exist at a time.

    Args:
        model: the autoencoder.
        z: unscaled latents.
        tile: largest side of a tile, in latent pixels.
        overlap: least overlap of neighbouring tiles, in latent pixels.

    Raises:
        ValueError: `overlap` does not lie in 0..`tile` - 1.
    """
    rows, columns = (Tiles.cover(length, tile, overlap) for length in z.shape[-3:-1])
    if len(rows.starts) == len(columns.starts) == 1:
        return model.decode(z)
    factor = model.config.downsample

    def image(latents: Float[Array, "h w c"]) -> Float32[Array, "H W 3"]:
        def piece(row: Int32[Array, ""], column: Int32[Array, ""]) -> Float32[Array, "p q 3"]:
            at = jax.lax.dynamic_slice(latents, (row, column, 0), (rows.size, columns.size, latents.shape[-1]))
            return model.decode(at)

        height, width = (length * factor for length in latents.shape[:2])
        return _blend(piece, rows, columns, (height, width, model.config.out_channels), factor)

    flat = jax.lax.map(image, z.reshape(-1, *z.shape[-3:]))
    return flat.reshape(*z.shape[:-3], *flat.shape[1:])


def encode_tiled(
    model: AutoencoderKL, images: Float[Array, "*batch H W 3"], tile: int = TILE, overlap: int = OVERLAP
) -> Posterior:
    """`model.encode` tile by tile and image by image; mean and log-variance of neighbouring tiles are blended.

    If one tile covers the images, this is `model.encode` itself.

    Args:
        model: the autoencoder.
        images: in [-1, 1].
        tile: largest side of a tile, in latent pixels.
        overlap: least overlap of neighbouring tiles, in latent pixels.

    Raises:
        ValueError: height or width is no multiple of `model.config.downsample`, or `overlap` does not lie in
            0..`tile` - 1.
    """
    factor = model.config.downsample
    rows, columns = (Tiles.cover(length // factor, tile, overlap) for length in images.shape[-3:-1])
    uneven = any(length % factor for length in images.shape[-3:-1])
    if uneven or len(rows.starts) == len(columns.starts) == 1:
        return model.encode(images)  # which refuses sizes that are no multiple

    def moments(whole: Float[Array, "H W 3"]) -> Float32[Array, "h w 2*c"]:
        def piece(row: Int32[Array, ""], column: Int32[Array, ""]) -> Float32[Array, "p q 2*c"]:
            size = (rows.size * factor, columns.size * factor, whole.shape[-1])
            found = model.encode(jax.lax.dynamic_slice(whole, (row * factor, column * factor, 0), size))
            return jnp.concatenate([found.mean, found.logvar], axis=-1)

        height, width = (length // factor for length in whole.shape[:2])
        return _blend(piece, rows, columns, (height, width, 2 * model.config.latent_channels), 1)

    flat = jax.lax.map(moments, images.reshape(-1, *images.shape[-3:]))
    mean, logvar = jnp.split(flat.reshape(*images.shape[:-3], *flat.shape[1:]), 2, axis=-1)
    return Posterior(mean, logvar)


def _blend(
    piece: Callable[[Array, Array], Float32[Array, "p q d"]],
    rows: Tiles,
    columns: Tiles,
    shape: tuple[int, int, int],
    scale: int,
) -> Float32[Array, "H W d"]:
    """The weighted sum of `piece(row, column)` over all tiles, on a grid `scale` times finer than that of the tiles."""
    row_weights, column_weights = jnp.asarray(rows.weights(scale)), jnp.asarray(columns.weights(scale))
    row_starts, column_starts = jnp.asarray(rows.starts), jnp.asarray(columns.starts)

    def add(canvas: Float32[Array, "H W d"], number: Int32[Array, ""]) -> tuple[Float32[Array, "H W d"], None]:
        i, j = number // len(columns.starts), number % len(columns.starts)
        values = piece(row_starts[i], column_starts[j])
        values = values * row_weights[i][:, None, None] * column_weights[j][None, :, None]
        corner = (row_starts[i] * scale, column_starts[j] * scale, 0)
        return jax.lax.dynamic_update_slice(
            canvas, jax.lax.dynamic_slice(canvas, corner, values.shape) + values, corner
        ), None

    count = len(rows.starts) * len(columns.starts)
    return jax.lax.scan(add, jnp.zeros(shape, jnp.float32), jnp.arange(count))[0]
