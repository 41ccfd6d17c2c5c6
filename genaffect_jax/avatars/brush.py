"""Lines and spots drawn on the face, given in head coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genaffect_jax.avatars.canvas import Canvas, Colour, Points, Stencil
from genaffect_jax.avatars.pose import Pose

_VISIBLE = 2.5 / 255.0  # a fainter line changes no pixel by more than two levels


class Brush:
    """Draws on the surface of a posed face, and skips what is too faint to see before any work is done."""

    def __init__(self, canvas: Canvas, pose: Pose):
        self.canvas = canvas
        self.pose = pose

    def line(
        self,
        centre: Points | Sequence[tuple[float, float]],
        half_width: Sequence[float] | np.ndarray,
        colour: Colour,
        alpha: float = 1.0,
        lift: float = 0.0,
        clip: Stencil | None = None,
    ) -> None:
        """A tapered line through `centre` (head coordinates), `lift` design units above the skin."""
        if alpha > _VISIBLE:
            self.canvas.stroke(self.pose.face(np.asarray(centre), lift), half_width, colour, alpha, clip)

    def lines(
        self,
        centres: Sequence[Sequence[tuple[float, float]]],
        half_width: Sequence[float],
        colour: Colour,
        alpha: float = 1.0,
        lift: float = 0.0,
        clip: Stencil | None = None,
    ) -> None:
        """As `line`, for several lines with the same number of points and the same look."""
        if alpha > _VISIBLE:
            points = np.array(centres)
            posed = self.pose.face(points.reshape(-1, 2), lift).reshape(points.shape)
            self.canvas.strokes(posed, half_width, colour, alpha, clip)

    def spot(
        self, shape: Points, colour: Colour, alpha: float = 1.0, lift: float = 0.0, clip: Stencil | None = None
    ) -> None:
        """A smooth closed shape (head coordinates)."""
        if alpha > _VISIBLE:
            self.canvas.fill(self.pose.face(shape, lift), colour, alpha, clip)

    def spots(
        self,
        shapes: Sequence[Points],
        colour: Colour,
        alpha: float = 1.0,
        lift: float = 0.0,
        clip: Stencil | None = None,
    ) -> None:
        """As `spot`, for several shapes with the same look; where they overlap they do not add up."""
        if alpha > _VISIBLE and shapes:
            self.canvas.fill(self.canvas.path(*self.pose.faces(shapes, lift)), colour, alpha, clip)
