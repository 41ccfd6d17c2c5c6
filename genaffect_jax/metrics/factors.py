"""Do generated images show the person and the expression that were asked for? Two figures, one per factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.metrics.identity import mean_cosine


@dataclass(frozen=True)
class FactorFigures:
    """What two encoders read in images. Figures of different encoders cannot be compared."""

    identity_cosine: float
    """Mean cosine of each image to its own reference; 1 is the same to the encoder."""
    stranger_cosine: float
    """Mean cosine of two of the `strangers`: what a model scores that draws somebody else."""
    expression_error: float
    """Mean absolute difference of the read to the wanted vector, over all channels (action units: 0 to 1)."""
    reference_error: float
    """The same of the reference images: what a model scores that ignores the expression and keeps the reference's."""
    images: int
    """Number of images."""
    identity_encoder: str
    """Name of the encoder of `identity_cosine`."""
    expression_encoder: str
    """Name of the encoder of the two errors."""


def factor_figures(
    identity: IdentityEncoder,
    expression: ExpressionEncoder,
    references: UInt8[np.ndarray, "B S S 3"],
    images: UInt8[np.ndarray, "B S S 3"],
    wanted: Float[np.ndarray, "B W"],
    strangers: UInt8[np.ndarray, "K S S 3"],
) -> FactorFigures:
    """Measures images, each with its reference and its wanted expression vector.

    A cosine says little by itself: encoders differ in how alike they find any two faces. Hence the baseline over
    `strangers`, one image each of at least two people.

    Raises:
        ValueError: fewer than two strangers, no images, not as many references and vectors as images, or vectors
            of another width than the expression encoder's.
    """
    if not len(images) or not len(references) == len(images) == len(wanted):
        raise ValueError(
            f"factor_figures: {len(images)} images, {len(references)} references, {len(wanted)} expression vectors"
        )
    if wanted.shape[1] != expression.width:
        raise ValueError(
            f"factor_figures: vectors of {wanted.shape[1]} numbers, {expression.name} gives {expression.width}"
        )
    cosines = np.sum(identity(references) * identity(images), axis=-1)
    return FactorFigures(
        identity_cosine=float(cosines.mean()),
        stranger_cosine=mean_cosine(identity(strangers)[None]),
        expression_error=float(np.abs(expression(images) - wanted).mean()),
        reference_error=float(np.abs(expression(references) - wanted).mean()),
        images=len(images),
        identity_encoder=identity.name,
        expression_encoder=expression.name,
    )
