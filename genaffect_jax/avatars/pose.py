"""Head pose: from head coordinates to the image, with the parallax of a round head turned in space.

Head coordinates have their origin in the middle of the head, x to the right of the image (the person's left), y
down, in design units. Every point has a depth towards the viewer; a turn of the head moves near points one way and
far points the other, which is what makes a flat drawing look round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from genaffect_jax.avatars.canvas import Points
from genaffect_jax.expressions.action_units import DEGREES, INDEX

CENTRE = (128.0, 117.0)  # where the middle of the head sits in the image
NECK = 66.0  # the roll pivot, below the middle of the head
RADIUS = 69.0  # of the sphere whose cap carries the face
DEPTH = 36.0  # of the face surface at its middle


_CURVE = np.array([(-DEPTH / (RADIUS * RADIUS),), (-DEPTH / (3.6 * RADIUS * RADIUS),)])


class Pose:
    """The turn of one head: yaw and roll positive to the person's left, pitch positive up."""

    def __init__(self, expression: np.ndarray):
        def radians(channel: str) -> float:
            return math.radians(DEGREES[channel] * float(expression[INDEX[channel]]))

        yaw, pitch, roll = radians("head_yaw"), radians("head_pitch"), radians("head_roll")
        tilt = np.array([(math.cos(roll), math.sin(roll)), (-math.sin(roll), math.cos(roll))])  # for row vectors
        self._tilt = tilt
        self._turn = np.array([(math.cos(yaw), 0.0), (0.0, math.cos(pitch))]) @ tilt
        self._shift = np.array((math.sin(yaw), -math.sin(pitch))) @ tilt  # per unit of depth
        self._curve = _CURVE * self._shift  # of (x^2, y^2)
        self._origin = np.array((CENTRE[0], CENTRE[1] + NECK)) - np.array((0.0, NECK)) @ tilt

    def face(self, points: Points, lift: float = 0.0) -> Points:
        """Points on the face surface, a shallow paraboloid, `lift` units above the skin, in image coordinates."""
        raised = self._origin + (DEPTH + lift) * self._shift
        return points.dot(self._turn) + (points * points).dot(self._curve) + raised

    def faces(self, chains: Sequence[Points], lift: float = 0.0) -> list[Points]:
        """As `face`, for several chains at once."""
        ends = [0, *accumulate(map(len, chains))]
        posed = self.face(np.concatenate(chains), lift)
        return [posed[start:end] for start, end in pairwise(ends)]

    def layer(self, points: Points, depth: float | np.ndarray) -> Points:
        """Points of a silhouette (head outline, hair, ears) at fixed depths; it shifts but is not foreshortened.

        `depth` is one number, or one per point as an array `(N, 1)`.
        """
        return points.dot(self._tilt) + (depth * self._shift + self._origin)

    def hang(self, points: Points, depth: float, fixed_from: float, fixed_at: float) -> Points:
        """As `layer`, for hair and cloth that hang: below `fixed_at` (head y) points no longer follow the head."""
        share = np.clip((points[:, 1:] - fixed_from) / (fixed_at - fixed_from), 0.0, 1.0)
        return self.layer(points, depth) * (1.0 - share) + (points + np.array(CENTRE)) * share

    def point(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """As `face`, for one point."""
        ((px, py),) = self.face(np.array([(x, y)]), lift).tolist()
        return px, py
