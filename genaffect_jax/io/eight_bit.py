"""Weights as 8-bit integers with one scale for each output channel: a quarter of float32.

Kernels end with their output channels, so a scale belongs to an index of the last axis: `w = scale * q`, with
`scale = max |w| / 127` over the channel and `q` rounded to nearest, -127 to 127. The error of a weight is at most half
a scale.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int8

LARGEST = 127
SCALE = ":scale"
"""What the name of a parameter ends with for its scales in a file; no parameter's own name holds a colon."""


def is_quantised(shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape is stored in 8 bits: all but scalars and vectors (biases, norms), which are few
    and are stored in float32."""
    return len(shape) >= 2


def quantise(
    weights: Float[np.ndarray, "... channels"],
) -> tuple[Int8[np.ndarray, "... channels"], Float32[np.ndarray, " channels"]]:
    """Integers and scales of finite weights; the scale of a channel of zeros is 0."""
    values = np.asarray(weights, np.float32)
    scale = np.abs(values).max(axis=tuple(range(values.ndim - 1)), initial=0.0) / np.float32(LARGEST)
    steps = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    # A scale below float32's normal numbers is too coarse to divide by: the quotient may pass the largest integer.
    return np.rint(steps).clip(-LARGEST, LARGEST).astype(np.int8), scale.astype(np.float32)


def dequantise(
    integers: Int8[np.ndarray, "... channels"], scale: Float32[np.ndarray, " channels"]
) -> Float32[np.ndarray, "... channels"]:
    """The weights that integers and scales stand for."""
    return integers.astype(np.float32) * scale
