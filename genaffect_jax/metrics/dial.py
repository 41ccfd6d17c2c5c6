"""Dials: does an expression grow evenly with the intensity that is asked for? NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# A step that rises by less than this share of an even step is flat.
_FLAT = 0.25


@dataclass(frozen=True)
class DialFigures:
    """What a dial does, per dial; arrays have one number for each."""

    correlation: Float[np.ndarray, "*batch"]
    """Pearson correlation of the read amount with the intensity; nan for a dial that never moves."""
    monotone: Float[np.ndarray, "*batch"]
    """Share of steps on which the read amount rises."""
    flat: Float[np.ndarray, "*batch"]
    """Largest share of the dial's range in one run of flat steps: a dead zone. Flat is a rise below a quarter of an
    even step."""
    gain: Float[np.ndarray, "*batch"]
    """Read amount at the largest intensity less that at the smallest, over the same of the intensities; 1 is right."""


def read_amounts(
    read: Float[np.ndarray, "*batch I W"], full: Float[np.ndarray, "*batch W"], neutral: Float[np.ndarray, " W"]
) -> Float[np.ndarray, "*batch I"]:
    """How much of an expression each image shows: 0 is `neutral`, 1 is `full`.

    The part of the change from neutral along the full change: `<read - neutral, full - neutral> / |full - neutral|^2`.

    Args:
        read: expression vectors of the images of a dial, one per intensity.
        full: the vector at intensity 1.
        neutral: the vector of the neutral face.
    """
    direction = full - neutral
    return np.einsum("...iw,...w->...i", read - neutral, direction) / np.square(direction).sum(-1)[..., None]


def dial_figures(amounts: Float[np.ndarray, "*batch I"], intensities: Float[np.ndarray, " I"]) -> DialFigures:
    """Linearity of dials.

    Args:
        amounts: what was read at each intensity (`read_amounts`).
        intensities: what was asked for, rising.

    Raises:
        ValueError: fewer than three intensities, or they do not rise.
    """
    steps = np.diff(intensities)
    if len(intensities) < 3 or (steps <= 0).any() or amounts.shape[-1] != len(intensities):
        raise ValueError(f"dial_figures: intensities {intensities.tolist()} for {amounts.shape[-1]} readings")
    rises = np.diff(amounts, axis=-1)
    span = intensities[-1] - intensities[0]
    total = amounts[..., -1] - amounts[..., 0]
    # Of a dial that does not rise at all, every step is flat.
    even = np.maximum(total, 0.0)[..., None] * steps / span
    flat = rises <= _FLAT * even
    longest = current = np.zeros(amounts.shape[:-1])
    for step, size in enumerate(steps):
        current = np.where(flat[..., step], current + size / span, 0.0)
        longest = np.maximum(longest, current)
    centred, spread = amounts - amounts.mean(-1, keepdims=True), intensities - intensities.mean()
    norm = np.linalg.norm(centred, axis=-1) * np.linalg.norm(spread)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(norm > 0, centred @ spread / norm, np.nan)
    return DialFigures(correlation, (rises > 0).mean(-1), longest, total / span)
