"""Eyes and brows: lids that clip the iris, lashes, the fold above the eye, brows as tapered shapes."""

from __future__ import annotations

import numpy as np

from genaffect_jax.data.avatars.canvas import Canvas, Colour, ellipse
from genaffect_jax.data.avatars.identity import Identity
from genaffect_jax.data.avatars.palette import IRIS_COLOURS, WHITE, Skin, mix
from genaffect_jax.data.avatars.pose import Pose
from genaffect_jax.data.avatars.rig import LID, Eye, Face

_LASH = np.array([0.30, 0.85, 1.15, 1.30, 1.40, 1.30, 0.55])
_THIN = np.array([0.0, 0.35, 0.6, 0.75, 0.8, 0.6, 0.1])
_BROW_WIDTH = np.array([1.9, 2.75, 2.6, 1.75, 0.4])


def draw_eye(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face, eye: Eye, lash: Colour) -> None:
    upper, lower, fold = pose.face(eye.upper), pose.face(eye.lower), pose.face(eye.fold)
    side = "L" if eye.side > 0 else "R"
    # The lid between fold and lashes: visible skin that grows as the eye closes.
    canvas.fill((fold, upper[::-1]), skin.shadow, 0.50)
    if eye.aperture > 0.15:
        opening = (upper, lower[::-1])
        canvas.fill(opening, (253, 252, 252))
        inside = canvas.clip(opening, canvas.scratch)
        _iris(canvas, identity, pose, eye, inside)
        # The lid's shadow on the eyeball.
        canvas.stroke(upper, 3.1 * _LASH, (60, 40, 80), 0.20, inside)
    width = _LASH * (0.78 + 0.42 * identity.lash_length)
    canvas.stroke(upper, width, lash)
    _lashes(canvas, identity, pose, eye, lash)
    canvas.stroke(lower, 0.75 * _THIN, skin.line, 0.75)
    canvas.stroke(fold[1:], 0.9 * _THIN[1:], skin.line, 0.25 + 0.5 * identity.eyelid_fold)
    _under_eye(canvas, identity, skin, pose, face, eye, side)


def _iris(canvas: Canvas, identity: Identity, pose: Pose, eye: Eye, inside: object) -> None:
    colour = IRIS_COLOURS[identity.iris_colour]
    (x, y), r = eye.iris, eye.iris_radius
    rim, glow = mix(colour, (16, 10, 30), 0.52), mix(colour, WHITE, 0.34)
    canvas.fill(pose.face(ellipse(x, y, r, r)), rim, 1.0, inside)
    canvas.fill(pose.face(ellipse(x, y + 0.3, 0.84 * r, 0.84 * r)), colour, 1.0, inside)
    canvas.fill(pose.face(ellipse(x, y + 0.40 * r, 0.56 * r, 0.36 * r)), glow, 0.75, inside)
    canvas.fill(pose.face(ellipse(x, y, 0.48 * r, 0.48 * r)), (22, 16, 26), 1.0, inside)
    canvas.fill(pose.face(ellipse(x - 0.34 * r, y - 0.36 * r, 0.27 * r, 0.27 * r)), WHITE, 0.96, inside)
    canvas.fill(pose.face(ellipse(x + 0.36 * r, y + 0.34 * r, 0.14 * r, 0.14 * r)), WHITE, 0.7, inside)


def _lashes(canvas: Canvas, identity: Identity, pose: Pose, eye: Eye, lash: Colour) -> None:
    """A flick at the outer corner and two lashes before it, as long as `lash_length`."""
    length = identity.lash_length
    if length < 0.25:
        return
    for i, reach in ((6, 6.0), (5, 5.2), (4, 4.2)):
        x, y = eye.upper[i].tolist()
        out = eye.side * reach * length
        path = np.array([(x, y), (x + 0.62 * out, y - 0.20 * reach * length), (x + out, y - 0.85 * reach * length)])
        canvas.stroke(pose.face(path), [1.25, 0.8, 0.1], lash)


def _under_eye(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face, eye: Eye, side: str) -> None:
    """The crease of a raised cheek or tightened lid below the eye, and crow's feet beside it."""
    cheek, tight = face.au[f"AU6{side}"], face.au[f"AU7{side}"]
    age = identity.wrinkles
    alpha = min(0.85, 0.60 * cheek + 0.35 * tight + 0.45 * age)
    base = eye.lower[:, 1] * 0.35 + (identity.eye_height - 3.0) * 0.65 + 9.0 - 2.6 * cheek
    bag = np.stack([eye.lower[:, 0], base - 4.5 * (1.0 - LID * LID) * cheek + 2.0 * (1.0 - LID * LID)], axis=1)
    canvas.stroke(pose.face(bag[1:6]), [0.1, 0.7, 0.95, 0.7, 0.1], skin.line, alpha * 0.62)
    crow = min(0.8, 0.62 * cheek * (0.45 + 0.55 * age) + 0.30 * age)
    x, y = eye.upper[6].tolist()
    for dy in (-5.0, 0.0, 5.0):
        line = np.array(
            [
                (x + eye.side * 4.5, y + 0.7 * dy),
                (x + eye.side * 8.0, y + 1.1 * dy),
                (x + eye.side * 11.0, y + 1.7 * dy),
            ]
        )
        canvas.stroke(pose.face(line), [0.65, 0.55, 0.05], skin.line, crow)


def draw_brow(canvas: Canvas, identity: Identity, pose: Pose, points: np.ndarray, colour: Colour) -> None:
    canvas.stroke(pose.face(points, 3.0), identity.brow_thickness * _BROW_WIDTH, colour)
