"""The noise levels a sampler visits: the flow-matching Euler schedule of SD3."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float

# The reference schedule has 1000 training timesteps, so its smallest noise level is 1/1000 before the shift.
TRAIN_TIMESTEPS = 1000
# Lengths to which schedules are padded, so that one program serves many numbers of steps.
PADDED_STEPS = (32, 128, TRAIN_TIMESTEPS)

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


def padded_sigmas(sigmas: Float[np.ndarray, " steps+1"]) -> Float[np.ndarray, " N+1"]:
    """Noise levels with zeros behind them, up to the next of `PADDED_STEPS` steps (or as they are, if there are more).

    A sampler that is told the number of steps never looks at the zeros.
    """
    steps = len(sigmas) - 1
    length = next((n for n in PADDED_STEPS if n >= steps), steps)
    return np.pad(sigmas, (0, length - steps))
