"""Settings of rectified flow: what is asked of the denoiser in training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from genaffect_jax.config.as_json import ADDED_LATER
from genaffect_jax.config.numbers import require_usable_numbers
from genaffect_jax.errors import require


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow: distribution of noise levels, SD3's resolution shift, dropout of the conditions."""

    timesteps: Literal["logit_normal", "uniform", "mode"] = field(default="logit_normal", metadata=ADDED_LATER)
    """Distribution of sigma in training, before the shift: `logit_normal`, `uniform`, or SD3's `mode`, which prefers
    the middle or both ends."""
    mode_scale: float = field(default=1.29, metadata=ADDED_LATER)
    """Scale s of `mode`, -1 to 2 / (pi - 2), about 1.75: above 0 prefers the middle, below 0 the ends."""
    logit_mean: float = 0.0
    """Mean of logit(sigma); a larger one trains more at high noise."""
    logit_std: float = 1.0
    """Standard deviation of logit(sigma)."""
    shift: float = 1.0
    """Resolution shift of sigma, `shift * s / (1 + (shift - 1) s)` (SD3: 3); used in training and sampling."""
    change_weight: float = 0.0
    """Extra loss weight w of latent pixels in which reference and target differ: `1 + w * difference / mean`."""
    drop_identity: float = 0.1
    """Probability of dropping the identity tokens of a training example."""
    drop_expression: float = 0.1
    """Probability of dropping the expression tokens of a training example, independent of the identity."""
    drop_text: float = 0.1
    """Probability of replacing the prompt of a training example by `text.negative`, independent of the other two."""
    drop_all: float = 0.05
    """Probability of dropping identity, expression and text together, for all examples of a person."""
    consistency: float = field(default=0.0, metadata=ADDED_LATER)
    """Share of each target's image tokens that all targets of its set attend to, as in sampling (consistent attention
    with every image an anchor); the targets of a set then have one noise level. 0: targets do not see each other."""
    drop_consistency: float = field(default=0.5, metadata=ADDED_LATER)
    """Probability of a step without consistent attention, so that the model also learns to sample without."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "flow.")
        require(
            -1.0 <= self.mode_scale <= 2.0 / (math.pi - 2.0),
            "flow.mode_scale",
            self.mode_scale,
            "must lie in [-1, 2 / (pi - 2)]",
        )
        require(self.logit_std > 0, "flow.logit_std", self.logit_std, "must be positive")
        require(self.shift > 0, "flow.shift", self.shift, "must be positive")
        require(self.change_weight >= 0, "flow.change_weight", self.change_weight, "must be at least 0")
        require(0.0 <= self.consistency <= 1.0, "flow.consistency", self.consistency, "must lie in [0, 1]")
        for name in ("drop_identity", "drop_expression", "drop_text", "drop_all", "drop_consistency"):
            require(0.0 <= getattr(self, name) < 1.0, f"flow.{name}", getattr(self, name), "must lie in [0, 1)")
