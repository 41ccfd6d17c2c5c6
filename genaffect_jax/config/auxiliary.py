"""Configuration of the optional losses on the image that the denoiser's prediction stands for."""

from __future__ import annotations

from dataclasses import dataclass

from genaffect_jax.errors import require


@dataclass(frozen=True)
class AuxiliaryConfig:
    """Losses on the decoded prediction at low noise, read by frozen face encoders; a weight of 0 leaves one out."""

    identity_weight: float = 0.0
    """Weight of the identity distance, 1 - cosine to the reference's embedding."""
    expression_weight: float = 0.0
    """Weight of the expression distance, the mean absolute difference to the wanted vector."""
    largest_sigma: float = 0.3
    """Noise level up to which examples count: above it the prediction is too blurred to be read as a face."""
    identity_encoder: str = "package:identity_avatar"
    """Weights of the identity encoder: `package:NAME` or a file; read only if its weight is above 0."""
    expression_encoder: str = "package:expression_avatar"
    """Weights of the expression encoder: `package:NAME` or a file; read only if its weight is above 0."""

    def __post_init__(self) -> None:
        for name in ("identity_weight", "expression_weight"):
            require(getattr(self, name) >= 0, f"auxiliary.{name}", getattr(self, name), "must be at least 0")
        require(0.0 < self.largest_sigma <= 1.0, "auxiliary.largest_sigma", self.largest_sigma, "must lie in (0, 1]")
