"""Expression: errors of predicted expression vectors. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class ExpressionAccuracy:
    """Absolute errors of predicted expression vectors, in units of the channels (action units: 0 to 1)."""

    mean: float
    """Over all images and channels."""
    baseline: float
    """Of predicting `typical` for every image."""
    channels: tuple[float, ...]
    """Of each channel, over all images."""
    channel_baselines: tuple[float, ...]
    """Of each channel, of predicting `typical`."""
    active: float
    """Over the places where the true value is at least `active_from` in size; nan if there are none."""
    active_baseline: float
    """The same of predicting `typical`."""
    active_from: float
    """Size from which a channel counts as active."""


def expression_accuracy(
    predicted: Float[np.ndarray, "B W"],
    true: Float[np.ndarray, "B W"],
    typical: Float[np.ndarray, " W"],
    active_from: float = 0.1,
) -> ExpressionAccuracy:
    """Mean absolute errors, beside those of the constant guess `typical` (the training images' mean).

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != true.shape or typical.shape != true.shape[1:]:
        raise ValueError(f"expression_accuracy: shapes {predicted.shape}, {true.shape} and {typical.shape}")
    error, guess = np.abs(predicted - true), np.abs(typical - true)
    active: Bool[np.ndarray, "B W"] = np.abs(true) >= active_from
    return ExpressionAccuracy(
        mean=float(error.mean()),
        baseline=float(guess.mean()),
        channels=tuple(float(e) for e in error.mean(0)),
        channel_baselines=tuple(float(e) for e in guess.mean(0)),
        active=float(error[active].mean()) if active.any() else float("nan"),
        active_baseline=float(guess[active].mean()) if active.any() else float("nan"),
        active_from=active_from,
    )


def spread_shares(values: Float[np.ndarray, "P V W"]) -> tuple[float, float]:
    """How far predictions vary over people and over expressions, for P people who each show the same V expressions.

    Returns:
        The standard deviation over people (mean over expressions and channels) and the one over expressions (mean
        over people and channels). An expression encoder that ignores identity has a small first number.
    """
    return float(values.std(0).mean()), float(values.std(1).mean())
