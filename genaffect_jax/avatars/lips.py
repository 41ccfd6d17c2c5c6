"""The mouth: lips, the dark inside, teeth fixed to skull and jaw, the tongue."""

from __future__ import annotations

import numpy as np

from genaffect_jax.avatars.canvas import Canvas, Points, Stencil, ellipse
from genaffect_jax.avatars.palette import MOUTH_INSIDE, TEETH, TONGUE, Skin, mix, shade
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.avatars.rig import Face, Mouth

_LINE = np.array([0.55, 0.85, 0.95, 0.9, 0.85, 0.9, 0.95, 0.85, 0.55])
_LIFT = 5.0  # the lips stand this far before the surface of the face


def draw_mouth(canvas: Canvas, skin: Skin, pose: Pose, face: Face) -> None:
    mouth = face.mouth
    glint = (mouth.inner_lower * 0.45 + mouth.outer_lower * 0.55)[2:7]
    chains = (mouth.inner_upper, mouth.inner_lower, mouth.outer_upper, mouth.outer_lower, glint)
    upper, lower, top, bottom, glint = pose.faces(chains, _LIFT)
    lip_top = mix(skin.lips, skin.line, 0.14)
    canvas.fill((bottom + np.array([0.0, 1.6]), top[::-1]), skin.shadow, 0.30)
    if mouth.gap > 0.3:
        opening = canvas.path((upper, lower[::-1]))
        canvas.fill(opening, MOUTH_INSIDE)
        _inside(canvas, pose, mouth, upper, lower, canvas.clip(opening))
    canvas.fill((top, upper[::-1]), lip_top)
    canvas.fill((lower, bottom[::-1]), skin.lips)
    thickness = float(mouth.outer_lower[4, 1] - mouth.inner_lower[4, 1])
    # A soft light on the lower lip.
    canvas.stroke(glint, [0.1, 0.13 * thickness, 0.16 * thickness, 0.13 * thickness, 0.1], shade(skin.lips, 0.45), 0.55)
    canvas.stroke(upper, 0.85 * _LINE, mix(skin.line, (70, 16, 30), 0.5), 0.92)
    if mouth.gap > 0.3:
        canvas.stroke(lower, 0.5 * _LINE, mix(skin.line, (70, 16, 30), 0.5), 0.6)
    if face.au["AU19"] > 0.0:
        _tongue_out(canvas, pose, mouth, face.au["AU19"])


def _inside(canvas: Canvas, pose: Pose, mouth: Mouth, upper: Points, lower: Points, inside: Stencil) -> None:
    x, y, rx, ry = mouth.tongue
    if ry > 0.2:
        canvas.fill(pose.face(ellipse(x, y, rx, ry), _LIFT - 4.0), TONGUE, 1.0, inside)
        canvas.fill(
            pose.face(ellipse(x, y + 0.2 * ry, 0.08 * rx, 0.9 * ry), _LIFT - 4.0), shade(TONGUE, -0.2), 0.6, inside
        )
    above, below = np.array([0.0, -8.0]), np.array([0.0, 8.0])
    edge, lower_edge = pose.faces((mouth.upper_teeth, mouth.lower_teeth), _LIFT - 2.0)
    canvas.fill((upper + above, edge[::-1]), TEETH, 1.0, inside)
    canvas.stroke(edge, 0.5 * _LINE, (150, 110, 130), 0.35, inside)
    canvas.fill((lower_edge, (lower + below)[::-1]), shade(TEETH, -0.07), 1.0, inside)
    # The upper lip's shadow on the teeth.
    canvas.stroke(upper, 2.6 * _LINE, (90, 30, 50), 0.22, inside)


def _tongue_out(canvas: Canvas, pose: Pose, mouth: Mouth, show: float) -> None:
    """A tongue over the lower lip. It is clipped at the upper teeth, whatever the lips do."""
    half = 0.50 * float(mouth.inner_lower[7, 0] - mouth.inner_lower[1, 0])
    wide = half * (0.50 + 0.14 * show)
    root, tip = float(mouth.inner_upper[4, 1]) - 2.0, mouth.tongue_tip
    outline = np.array(
        [
            (-wide, root),
            (-wide, 0.5 * (root + tip)),
            (-0.74 * wide, tip - 3.0),
            (0.0, tip),
            (0.74 * wide, tip - 3.0),
            (wide, 0.5 * (root + tip)),
            (wide, root),
        ]
    )
    edge = pose.face(np.minimum(mouth.upper_teeth, mouth.inner_lower), _LIFT)
    corner = pose.face(np.array([mouth.inner_upper[8], mouth.inner_upper[0]]) + np.array([0.0, 60.0]), _LIFT)
    below_teeth = canvas.clip((edge, corner))
    canvas.fill((pose.face(outline, _LIFT),), TONGUE, 1.0, below_teeth)
    groove = np.array([(0.0, root), (0.0, 0.6 * root + 0.4 * tip), (0.0, 0.35 * root + 0.65 * tip), (0.0, tip - 4.0)])
    canvas.stroke(pose.face(groove, _LIFT), [1.0, 1.0, 0.7, 0.1], shade(TONGUE, -0.28), 0.6, below_teeth)
    canvas.stroke(edge, 2.4 * _LINE, (90, 30, 50), 0.25, below_teeth)
