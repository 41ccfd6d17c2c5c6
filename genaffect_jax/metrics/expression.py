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


def relative_gain(
    generated: Float[np.ndarray, "*batch V W"],
    wanted: Float[np.ndarray, "*batch V W"],
    reference: Float[np.ndarray, "*batch W"],
) -> Float[np.ndarray, "*batch"]:
    """How much of the way from the reference's face to the wanted ones was gone.

    `1 - mean |generated - wanted| / mean |reference - wanted|`, the means over a person's images and the channels: 0
    for a copy of the reference, 1 for the wanted expressions, negative for what is further off than the reference. An
    expression error alone looks good where most wanted expressions are near the reference's.

    Args:
        generated: expression vectors read in V images of each person.
        wanted: those asked for.
        reference: those read in the reference images.

    Returns:
        One number per person; nan where the reference shows exactly what was wanted.
    """
    error = np.abs(generated - wanted).mean((-2, -1))
    start = np.abs(reference[..., None, :] - wanted).mean((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(start > 0, 1.0 - error / start, np.nan)


def spread_shares(values: Float[np.ndarray, "P V W"]) -> tuple[float, float]:
    """How far predictions vary over people and over expressions, for P people who each show the same V expressions.

    Returns:
        The standard deviation over people (mean over expressions and channels) and the one over expressions (mean
        over people and channels). An expression encoder that ignores identity has a small first number.
    """
    return float(values.std(0).mean()), float(values.std(1).mean())
