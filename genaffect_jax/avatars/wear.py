"""What sits on the face: beards and moustaches, glasses, earrings."""

from __future__ import annotations

import numpy as np

from genaffect_jax.avatars.canvas import Canvas, Points, ellipse
from genaffect_jax.avatars.hair import Tones
from genaffect_jax.avatars.head import EAR_DEPTH, HEAD_DEPTH
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import FRAME_COLOURS, METAL, WHITE, mix, shade
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.avatars.rig import SIDES, Face, half_width


def draw_facial_hair(canvas: Canvas, identity: Identity, pose: Pose, face: Face, tones: Tones) -> None:
    """Drawn under the mouth, so that the lips lie on the beard; it follows jaw and lips."""
    style = identity.facial_hair
    if style == "none":
        return
    density = 0.55 + 0.45 * identity.facial_hair_density
    if style in ("stubble", "beard"):
        _beard(
            canvas,
            identity,
            pose,
            face,
            tones,
            0.16 + 0.16 * identity.facial_hair_density if style == "stubble" else density,
        )
    if style == "goatee":
        _goatee(canvas, pose, face, tones, density)
    if style in ("moustache", "goatee", "beard"):
        _moustache(canvas, pose, face, tones, density if style != "beard" else 1.0)


def _beard(canvas: Canvas, identity: Identity, pose: Pose, face: Face, tones: Tones, alpha: float) -> None:
    mouth, wide = face.mouth, half_width(identity)
    lower = face.outline[4:13].copy()
    lower[1:8, 1] += 2.5 if identity.facial_hair == "beard" else 0.0
    depth = HEAD_DEPTH + 9.0 * np.maximum(lower[:, 1:], 0.0) / 80.0
    (left_x, left_y), (right_x, right_y) = mouth.inner_upper[0].tolist(), mouth.inner_upper[8].tolist()
    tip_y = face.nose_tip[1]
    inner = np.array(
        [
            (-wide + 3.0, 2.0),
            (-0.82 * wide, 22.0),
            (-0.60 * wide, 31.0),
            (left_x - 5.0, left_y - 8.0),
            (-11.0, tip_y + 11.0),
            (0.0, tip_y + 10.0),
            (11.0, tip_y + 11.0),
            (right_x + 5.0, right_y - 8.0),
            (0.60 * wide, 31.0),
            (0.82 * wide, 22.0),
            (wide - 3.0, 2.0),
        ]
    )
    canvas.fill(
        (pose.layer(lower, depth), pose.face(inner)),
        tones.base if alpha > 0.4 else mix(tones.base, (40, 34, 44), 0.7),
        alpha,
    )


def _goatee(canvas: Canvas, pose: Pose, face: Face, tones: Tones, alpha: float) -> None:
    mouth = face.mouth
    left, right = mouth.inner_lower[0].tolist(), mouth.inner_lower[8].tolist()
    low = face.chin
    patch = np.array(
        [
            (left[0] - 3.0, left[1] - 2.0),
            (left[0] - 1.0, 0.5 * (left[1] + low)),
            (-13.0, low - 2.0),
            (0.0, low + 2.0),
            (13.0, low - 2.0),
            (right[0] + 1.0, 0.5 * (right[1] + low)),
            (right[0] + 3.0, right[1] - 2.0),
        ]
    )
    top = mouth.outer_lower[::-1] + np.array([0.0, 1.5])
    canvas.fill((pose.face(patch), pose.face(top)), tones.base, alpha)


def _moustache(canvas: Canvas, pose: Pose, face: Face, tones: Tones, alpha: float) -> None:
    upper = face.mouth.outer_upper
    base = face.nose_tip[1] + 9.0
    left, right = upper[0].tolist(), upper[8].tolist()
    over = np.array(
        [
            (right[0] + 3.5, right[1] + 3.0),
            (0.75 * right[0], 0.5 * (right[1] + base) - 2.0),
            (7.0, base),
            (0.0, base + 1.8),
            (-7.0, base),
            (0.75 * left[0], 0.5 * (left[1] + base) - 2.0),
            (left[0] - 3.5, left[1] + 3.0),
        ]
    )
    under = upper + np.array([0.0, 1.2])
    canvas.fill((pose.face(over, 6.0), pose.face(under, 6.0)), mix(tones.base, tones.dark, 0.25), alpha)


# Lens outlines as (x, y) factors of half width and half height; x grows from the nose outwards.
_LENSES: dict[str, tuple[tuple[float, float], ...]] = {
    "round": (
        (-1.0, 0.0),
        (-0.71, -0.71),
        (0.0, -1.0),
        (0.71, -0.71),
        (1.0, 0.0),
        (0.71, 0.71),
        (0.0, 1.0),
        (-0.71, 0.71),
    ),
    "square": (
        (-1.0, 0.0),
        (-0.96, -0.78),
        (-0.6, -0.92),
        (0.6, -0.92),
        (0.98, -0.78),
        (1.02, 0.0),
        (0.84, 0.78),
        (0.4, 0.92),
        (-0.4, 0.92),
        (-0.84, 0.78),
    ),
    "cat_eye": (
        (-1.0, 0.0),
        (-0.90, -0.66),
        (-0.2, -0.84),
        (0.6, -1.0),
        (1.18, -1.12),
        (1.04, -0.1),
        (0.66, 0.72),
        (0.0, 0.90),
        (-0.7, 0.68),
    ),
    "aviator": (
        (-0.94, -0.3),
        (-0.84, -0.78),
        (0.0, -0.90),
        (0.84, -0.80),
        (1.04, -0.2),
        (0.88, 0.62),
        (0.28, 1.08),
        (-0.42, 0.88),
        (-0.84, 0.34),
    ),
}
_LENSES["half_rim"] = _LENSES["square"]


def draw_glasses(canvas: Canvas, identity: Identity, pose: Pose) -> None:
    style = identity.glasses
    if style == "none":
        return
    frame = FRAME_COLOURS[identity.glasses_colour]
    thickness = {"round": 1.7, "square": 2.6, "cat_eye": 2.4, "half_rim": 2.2, "aviator": 1.4}[style]
    centre_x, centre_y = 28.5 + identity.eye_spacing, -1.0 + identity.eye_height
    half_x, half_y = (20.5, 19.5) if style == "round" else (21.0, 17.5)
    lift = 10.0
    for _, sign in SIDES:

        def loop(shrink: float, sign: float = sign) -> Points:
            return pose.face(
                np.array(
                    [
                        (sign * (centre_x + x * (half_x - shrink)), centre_y + y * (half_y - shrink))
                        for x, y in _LENSES[style]
                    ]
                ),
                lift,
            )

        outer, inner = loop(0.0), loop(thickness)
        canvas.fill(inner, (214, 236, 250), 0.16)
        glint = np.array([(sign * centre_x - 9.0, centre_y + 4.0), (sign * centre_x - 3.5, centre_y - 9.0)])
        canvas.stroke(pose.face(glint, lift), [1.6, 1.6], WHITE, 0.22)
        if style == "half_rim":
            top = pose.face(
                np.array(
                    [
                        (sign * (centre_x + x * half_x), centre_y + y * half_y)
                        for x, y in (
                            (-1.0, 0.1),
                            (-0.96, -0.75),
                            (-0.6, -0.92),
                            (0.6, -0.92),
                            (0.98, -0.75),
                            (1.02, 0.1),
                        )
                    ]
                ),
                lift,
            )
            canvas.stroke(top, [0.8, 1.6, 1.9, 1.9, 1.6, 0.8], frame)
            canvas.ring(outer, loop(0.8), frame, 0.35)
        else:
            canvas.ring(outer, inner, frame)
        hinge = pose.face(np.array([(sign * (centre_x + half_x - 0.5), centre_y - 6.0)]), lift)
        ear = pose.layer(np.array([(sign * (half_width(identity) - 0.5), centre_y - 5.0)]), HEAD_DEPTH - 4.0)
        canvas.stroke(np.concatenate([hinge, ear]), [1.3, 1.3], frame)
    bridge_y = centre_y - (10.0 if style == "aviator" else 4.0)
    inner_x = centre_x - half_x + 0.6
    bridge = pose.face(
        np.array([(-inner_x, bridge_y + 1.5), (0.0, bridge_y - 2.0), (inner_x, bridge_y + 1.5)]), lift + 2.0
    )
    canvas.stroke(bridge, [1.2, 1.2, 1.2], frame)


def draw_earrings(canvas: Canvas, identity: Identity, pose: Pose) -> None:
    if identity.earrings == "none":
        return
    y = 6.0 + identity.ear_height + 15.5 * identity.ear_size
    for _, sign in SIDES:
        x = sign * (half_width(identity) + 1.5)
        if identity.earrings == "stud":
            canvas.fill(pose.layer(ellipse(x, y, 2.5, 2.5), EAR_DEPTH + 3.0), METAL)
            canvas.fill(pose.layer(ellipse(x - 0.7, y - 0.7, 0.9, 0.9), EAR_DEPTH + 3.0), WHITE, 0.9)
        else:
            ring = [pose.layer(ellipse(x, y + 6.5, r - 1.5, r), EAR_DEPTH + 3.0) for r in (8.0, 6.2)]
            canvas.ring(ring[0], ring[1], shade(METAL, -0.08))
