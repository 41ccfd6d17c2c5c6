"""Face alignment: the place of a face in an aligned image, and the warp to it.

Aligned images are square. The five points of a face (eyes, tip of the nose, corners of the mouth) lie where ArcFace
expects them in its 112-px square (Deng et al. 2019, arXiv 1801.07698; the numbers are insightface's `arcface_dst`).
That square is centred in the image and has three quarters of its side (`config.encoders.ARCFACE_CROP`). FFHQ's rule
(Karras et al. 2019, arXiv 1812.04948, appendix A: 4 eye distances, or 3.6 distances from eyes to mouth if that is more)
gives nearly the same image: a square of 0.765 of the side, half a pixel of 112 off the centre. As the place is fixed,
images from a model trained on aligned ones need no detector: an encoder reads the square.

Coordinates are continuous: pixel i covers [i, i + 1]. Detectors count from the centre of the first pixel, so 0.5 is
added to their points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from genaffect_jax.config.encoders import ARCFACE_CROP

ARCFACE_SIDE = 112
ARCFACE_POINTS: Float[np.ndarray, "5 2"] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye (of the image), right eye, nose, left and right corner of the mouth: x and y in pixels of 112."""
TEMPLATE: Float[np.ndarray, "5 2"] = (
    np.array(ARCFACE_CROP[:2]) + ARCFACE_CROP[2] * (ARCFACE_POINTS + 0.5) / ARCFACE_SIDE
)
"""The same points as shares of the side of an aligned image."""
_KERNEL = 3  # pixels that bicubic interpolation may read around a point, and one to spare


@dataclass(frozen=True)
class Alignment:
    """The similarity transform from a photo to its aligned image.

    `aligned = factor * photo + shift`, with points as complex numbers x + iy; photo in pixels, aligned in shares of
    its side.
    """

    factor: complex
    """Scale and rotation."""
    shift: complex
    """Translation."""

    @property
    def face_side(self) -> float:
        """Side of ArcFace's square in the photo, in pixels."""
        return ARCFACE_CROP[2] / abs(self.factor)

    def apply(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """A detector's points as shares of the aligned image's side."""
        return _pairs(self.factor * (_complex(points) + 0.5 + 0.5j) + self.shift)

    def inside(self, height: int, width: int) -> float:
        """Share of the aligned image that a photo of this size fills; the rest repeats its edge."""
        grid = (np.arange(64) + 0.5) / 64
        x, y = _pairs((grid[None, :] + 1j * grid[:, None] - self.shift).reshape(-1) / self.factor).T
        return float(np.mean((x >= 0) & (x <= width) & (y >= 0) & (y <= height)))


def alignment_of(points: Float[np.ndarray, "5 2"]) -> Alignment:
    """The similarity transform from five points to the template (least squares, without reflection).

    In the plane, Umeyama's solution (1991) is the complex regression of the template on the points.

    Args:
        points: x and y in pixels of the photo, in the order of `ARCFACE_POINTS`.

    Raises:
        ValueError: the shape is wrong, a number is not finite, or all points coincide.
    """
    points = np.asarray(points, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"points of a face: shape {points.shape}, must be five finite pairs x, y")
    photo, wanted = _complex(points) + 0.5 + 0.5j, _complex(TEMPLATE)
    centred = photo - photo.mean()
    spread = float(np.sum(np.abs(centred) ** 2))
    factor = complex(np.sum(np.conj(centred) * (wanted - wanted.mean())) / spread) if spread > 0 else 0j
    if abs(factor) == 0:
        raise ValueError("points of a face: all in one place")
    return Alignment(factor, complex(wanted.mean() - factor * photo.mean()))


def warp(image: UInt8[np.ndarray, "H W 3"], alignment: Alignment, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The aligned image of a photo.

    A photo is first shrunk to the final resolution with a filter (a warp alone would alias), then rotated with bicubic
    interpolation. Outside the photo, the nearest edge is repeated.

    Args:
        image: the photo, RGB.
        alignment: the transform.
        size: side S of the result, in pixels.
    """
    factor, shift = alignment.factor * size, alignment.shift * size
    reduction = max(1, int(0.5 / abs(factor)))  # a whole factor first, as the rest then works on a much smaller region
    if reduction > 1:
        image = np.asarray(Image.fromarray(image).reduce(reduction))
        factor *= reduction
    corners = _pairs((np.array([0, size, size * 1j, size * (1 + 1j)]) - shift) / factor)
    left, top = np.floor(corners.min(0)).astype(int) - _KERNEL
    right, bottom = np.ceil(corners.max(0)).astype(int) + _KERNEL
    region = image[_clipped(top, bottom, image.shape[0])][:, _clipped(left, right, image.shape[1])]
    pixels = Image.fromarray(region)
    scale_x = scale_y = 1.0
    if abs(factor) < 1:
        width, height = (max(1, math.ceil(side * abs(factor))) for side in pixels.size)
        scale_x, scale_y = width / pixels.size[0], height / pixels.size[1]
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    # Pillow needs the inverse, from points of the result to points of the region.
    back, origin = 1 / factor, -shift / factor - complex(left, top)
    coefficients = (
        back.real * scale_x,
        -back.imag * scale_x,
        origin.real * scale_x,
        back.imag * scale_y,
        back.real * scale_y,
        origin.imag * scale_y,
    )
    aligned = pixels.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return np.array(aligned, np.uint8)


def _clipped(first: int, last: int, length: int) -> Integer[np.ndarray, " n"]:
    return np.clip(np.arange(first, last), 0, length - 1)


def _complex(points: Float[np.ndarray, "N 2"]) -> np.ndarray:
    return points[:, 0] + 1j * points[:, 1]


def _pairs(points: np.ndarray) -> Float[np.ndarray, "N 2"]:
    return np.stack([points.real, points.imag], axis=-1)
