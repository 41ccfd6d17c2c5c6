"""Headscarf and beanie, in the accent colour of the outfit."""

from __future__ import annotations

import numpy as np

from genaffect_jax.avatars.canvas import Canvas, Colour, Stop
from genaffect_jax.avatars.hair_shapes import FRONT_DEPTH, Shape
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import CLOTH_COLOURS, shade
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.avatars.rig import Face, half_width

# One gradient for all pieces, so that no seam shows where they meet.
_LIGHT = ((84.0, 30.0), (190.0, 250.0))


def _stops(cloth: Colour) -> list[Stop]:
    return [(0.0, shade(cloth, 0.20), 1.0), (0.35, cloth, 1.0), (1.0, shade(cloth, -0.24), 1.0)]


def draw_drape(canvas: Canvas, identity: Identity, pose: Pose, face: Face) -> None:
    """The part of a headscarf below the chin; the scarf's colour is the outfit's accent."""
    cloth = CLOTH_COLOURS[identity.outfit_accent]
    w = half_width(identity)
    jaw = face.outline[3:14] * np.array([0.94, 0.97])
    inside = pose.face(jaw, 3.0)
    outside = pose.hang(
        np.array(
            [
                (-w - 8.0, 10.0),
                (-w - 6.0, 50.0),
                (-0.86 * w, 84.0),
                (-0.96 * w, 116.0),
                (0.0, 142.0),
                (0.96 * w, 116.0),
                (0.86 * w, 84.0),
                (w + 6.0, 50.0),
                (w + 8.0, 10.0),
            ]
        ),
        FRONT_DEPTH,
        50.0,
        100.0,
    )
    canvas.linear(
        (outside, inside), (80.0, 150.0), (180.0, 240.0), [(0.0, cloth, 1.0), (1.0, shade(cloth, -0.20), 1.0)]
    )
    for dx, dy in ((-20.0, 96.0), (4.0, 104.0)):
        fold = np.array([(dx - 30.0, dy - 22.0), (dx, dy), (dx + 34.0, dy - 14.0)])
        canvas.stroke(pose.hang(fold, FRONT_DEPTH, 50.0, 100.0), [0.1, 1.3, 0.1], shade(cloth, -0.30), 0.7)


def draw_headwear(canvas: Canvas, identity: Identity, pose: Pose, shapes: list[Shape]) -> None:
    cloth = CLOTH_COLOURS[identity.outfit_accent]
    dark, light = shade(cloth, -0.24), shade(cloth, 0.20)
    w = half_width(identity)
    for shape in shapes:
        canvas.linear(shape, *_LIGHT, _stops(cloth))
    if identity.hair_style == "beanie":
        rim = np.array([(-w - 0.5, -38.0), (-0.52 * w, -47.0), (0.0, -50.0), (0.52 * w, -47.0), (w + 0.5, -38.0)])
        line = pose.layer(rim, 10.0)
        canvas.stroke(line, [7.5, 10.0, 10.5, 10.0, 7.5], light)
        fold = pose.layer(rim * np.array([0.92, 1.0]) + np.array([0.0, 9.0]), 10.0)
        canvas.stroke(fold, [0.1, 1.0, 1.0, 1.0, 0.1], dark, 0.7)
        for k in range(-4, 5):
            x = 0.215 * k * w
            y = -50.0 + 13.0 * (k / 4.6) * (k / 4.6)
            canvas.stroke(pose.layer(np.array([(x, y - 8.0), (x, y + 8.0)]), 10.0), [0.55, 0.55], dark, 0.45)
    else:
        for start, end in (((-0.2 * w, -84.0), (-0.86 * w, -30.0)), ((0.16 * w, -85.0), (0.84 * w, -40.0))):
            middle = (0.62 * (start[0] + end[0]), 0.5 * (start[1] + end[1]) - 8.0)
            canvas.stroke(pose.layer(np.array([start, middle, end]), 8.0), [0.2, 1.2, 0.1], dark, 0.6)
