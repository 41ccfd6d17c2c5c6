"""ArcFace layers with folded batch normalisations, and axes and names as in `models.face_encoders.iresnet`.

A normalisation y = a x + c (a = weight / sqrt(variance + epsilon), c = bias - a mean) after a convolution or linear
layer multiplies its kernel by a and changes its bias b to a b + c. Folding is computed in float64. Exporters may have
folded some normalisations already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from genaffect_jax.errors import WeightsError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Affine:
    """A batch normalisation as a factor and a shift per channel, float64."""

    scale: Float[np.ndarray, " C"]
    """Factors."""
    bias: Float[np.ndarray, " C"]
    """Shifts."""

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float) -> Affine:
        """The affine map of a batch normalisation with these statistics."""
        scale = weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return cls(scale, bias.astype(np.float64) - mean.astype(np.float64) * scale)


class FoldedLayers:
    """Collects layers under this package's names; kernels are given in torch's axis order [out, in, ...]."""

    def __init__(self) -> None:
        self.parameters: Arrays = {}

    def add_affine(self, name: str, affine: Affine) -> None:
        """A normalisation that remains a layer."""
        self.parameters[f"{name}.scale"] = affine.scale
        self.parameters[f"{name}.bias"] = affine.bias

    def add_slope(self, name: str, slope: np.ndarray) -> None:
        """A PReLU's slopes, of shape [C] or [C, 1, 1]."""
        self.parameters[f"{name}.slope"] = slope.reshape(-1)

    def add_conv(self, name: str, kernel: np.ndarray, bias: np.ndarray | None, norm: Affine | None) -> None:
        """A convolution and the normalisation after it."""
        kernel, bias = _fold(kernel, bias, norm)
        self.parameters[f"{name}.kernel"] = kernel.transpose(2, 3, 1, 0)
        self.parameters[f"{name}.bias"] = bias

    def add_head(self, name: str, kernel: np.ndarray, bias: np.ndarray | None, norm: Affine | None) -> None:
        """The linear layer over a flattened [C, h, w], here [h, w, C], and the normalisation after it."""
        kernel, bias = _fold(kernel, bias, norm)
        channels = len(self.parameters["trunk.norm.scale"])
        side = math.isqrt(kernel.shape[1] // channels)
        if channels * side * side != kernel.shape[1]:
            raise WeightsError(f"linear layer: {kernel.shape[1]} inputs, must be {channels} times a square")
        parts = kernel.reshape(len(kernel), channels, side, side).transpose(2, 3, 1, 0)
        self.parameters[f"{name}.kernel"] = parts.reshape(-1, len(kernel))
        self.parameters[f"{name}.bias"] = bias


def _fold(kernel: np.ndarray, bias: np.ndarray | None, norm: Affine | None) -> tuple[np.ndarray, np.ndarray]:
    kernel = kernel.astype(np.float64)
    bias = np.zeros(len(kernel)) if bias is None else bias.astype(np.float64)
    if norm is None:
        return kernel, bias
    return kernel * norm.scale.reshape(-1, *[1] * (kernel.ndim - 1)), norm.scale * bias + norm.bias
