"""Copying: does a generated image show the person, or repeat the reference? NumPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# Angles below are those of two encodings of one image: rounding, not a difference.
_SMALLEST_ANGLE = 1e-3


def angle(a: Float[np.ndarray, "*batch W"], b: Float[np.ndarray, "*batch W"]) -> Float[np.ndarray, "*batch"]:
    """Angles between unit vectors, in radians.

    By the chord: the arc cosine loses half of the digits for vectors that are nearly equal.
    """
    return 2.0 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2.0, 0.0, 1.0))


def copy_scores(
    generated: Float[np.ndarray, "*batch W"],
    truth: Float[np.ndarray, "*batch W"],
    reference: Float[np.ndarray, "*batch W"],
) -> Float[np.ndarray, "*batch"]:
    """How much nearer a generated image lies to the reference than to the truth.

    `(angle(generated, truth) - angle(generated, reference)) / angle(truth, reference)`: 1 for a copy of the reference,
    -1 for the true image, 0 half way; between -1 and 1 by the triangle inequality of angles. After WithAnyone's
    copy-paste metric (arXiv 2510.14975).

    Args:
        generated, truth, reference: embeddings of one identity encoder, unit vectors; `truth` is that of another image
            of the same person.

    Returns:
        One score per image; nan where truth and reference are one image to the encoder.
    """
    apart = angle(truth, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (angle(generated, truth) - angle(generated, reference)) / apart
    return np.where(apart < _SMALLEST_ANGLE, np.nan, scores)
