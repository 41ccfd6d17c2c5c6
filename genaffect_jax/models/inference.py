"""How a network is computed where no gradient is taken: choices of speed that leave its parameters alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Inference:
    """Static choices; networks that train have none of them."""

    bounded_scores: bool = False
    """The parameters' `bounded_scores.score_bound` is within its `LARGEST_SCORE`: attention may use the kernel of
    `models.hopper_attention`."""


PLAIN = Inference()
