"""The noise levels a sampler visits: the flow-matching schedule of SD3, the same for every solver."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float

# The reference schedule has 1000 training timesteps, so its smallest noise level is 1/1000 before the shift.
TRAIN_TIMESTEPS = 1000
# Lengths that noise levels are padded to, in steps. Programs are compiled per length, so this is how many there are.
STEP_BUCKETS = (32, 128, 1000)


Sigma = TypeVar("Sigma", Array, np.ndarray)


def shift_sigma(sigma: Sigma, shift: float) -> Sigma:
    """Resolution shift of a noise level, `shift * s / (1 + (shift - 1) s)` (arXiv 2403.03206, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def euler_sigmas(steps: int, shift: float) -> Float[np.ndarray, " steps+1"]:
    """Noise levels from 1 down to 0, the boundaries of `steps` Euler steps; float32.

    As in diffusers' `FlowMatchEulerDiscreteScheduler` the shift acts twice on the smallest level: on the training
    table that gives the ends of the range, and on the levels chosen between them.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if shift <= 0:
        raise ValueError(f"shift={shift}: must be positive")
    table = np.arange(1, TRAIN_TIMESTEPS + 1, dtype=np.float32) / np.float32(TRAIN_TIMESTEPS)
    ends = shift_sigma(table[[-1, 0]], shift)
    levels = np.linspace(float(ends[0]), float(ends[1]), steps)
    return np.append(shift_sigma(levels, shift), 0.0).astype(np.float32)


def padded_sigmas(steps: int, shift: float) -> Float[np.ndarray, " levels+1"]:
    """The levels of `euler_sigmas`, then zeros up to the smallest of `STEP_BUCKETS` that holds them; float32.

    One compiled program serves all numbers of steps of a bucket, given `steps` as an array (see `sampler.sample`). More
    steps than the largest bucket are not padded.

    Raises:
        ValueError: see `euler_sigmas`.
    """
    sigmas = euler_sigmas(steps, shift)
    levels = min((bucket for bucket in STEP_BUCKETS if bucket >= steps), default=steps)
    return np.pad(sigmas, (0, levels - steps))
