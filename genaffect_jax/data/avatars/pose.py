"""Head pose: from head coordinates to the picture, with the parallax of a round head turned in space.

Head coordinates have their origin in the middle of the head, x to the right of the picture (the person's left), y
down, in design units. Every point has a depth towards the viewer; a turn of the head moves near points one way and
far points the other, which is what makes a flat drawing look round.
"""

from __future__ import annotations

import math

import numpy as np

from genaffect_jax.data.avatars.canvas import Points
from genaffect_jax.faces.action_units import DEGREES, INDEX

CENTRE = (128.0, 117.0)  # where the middle of the head sits in the picture
NECK = 66.0  # the roll pivot, below the middle of the head
RADIUS = 82.0  # of the sphere whose cap carries the face
DEPTH = 36.0  # of the face surface at its middle


def surface(points: Points, lift: float = 0.0) -> np.ndarray:
    """Depth of points on the face: a shallow paraboloid, `lift` design units above the skin. Shape `(N,)`."""
    x, y = points[:, 0] / RADIUS, points[:, 1] / (1.6 * RADIUS)
    return DEPTH * (1.0 - x * x - y * y) + lift


class Pose:
    """The turn of one head: yaw and roll positive to the person's left, pitch positive up."""

    def __init__(self, expression: np.ndarray):
        def radians(channel: str) -> float:
            return math.radians(DEGREES[channel] * float(expression[INDEX[channel]]))

        yaw, pitch, roll = radians("head_yaw"), radians("head_pitch"), radians("head_roll")
        self._sin_yaw, self._cos_yaw = math.sin(yaw), math.cos(yaw)
        self._sin_pitch, self._cos_pitch = math.sin(pitch), math.cos(pitch)
        self._sin_roll, self._cos_roll = math.sin(roll), math.cos(roll)

    def face(self, points: Points, lift: float = 0.0) -> Points:
        """Points on the face surface, `lift` above the skin, in picture coordinates."""
        z = surface(points, lift)
        x = points[:, 0] * self._cos_yaw + z * self._sin_yaw
        y = points[:, 1] * self._cos_pitch - z * self._sin_pitch
        return self._place(x, y)

    def layer(self, points: Points, depth: float | np.ndarray) -> Points:
        """Points of a silhouette (head outline, hair, ears) at a fixed depth; it shifts but is not foreshortened."""
        return self._place(points[:, 0] + depth * self._sin_yaw, points[:, 1] - depth * self._sin_pitch)

    def hang(self, points: Points, depth: float, fixed_from: float, fixed_at: float) -> Points:
        """As `layer`, for hair and cloth that hang: below `fixed_at` (head y) points no longer follow the head."""
        share = np.clip((points[:, 1:] - fixed_from) / (fixed_at - fixed_from), 0.0, 1.0)
        return self.layer(points, depth) * (1.0 - share) + (points + np.array(CENTRE)) * share

    def point(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """As `face`, for one point."""
        (px, py) = self.face(np.array([(x, y)]), lift)[0].tolist()
        return px, py

    def _place(self, x: np.ndarray, y: np.ndarray) -> Points:
        y = y - NECK
        rolled_x = x * self._cos_roll - y * self._sin_roll
        rolled_y = x * self._sin_roll + y * self._cos_roll
        return np.stack([rolled_x + CENTRE[0], rolled_y + (CENTRE[1] + NECK)], axis=1)
