"""Eyes and brows: lids that clip the iris, lashes, the fold above the eye, brows as tapered shapes."""

from __future__ import annotations

import numpy as np

from genaffect_jax.avatars.brush import Brush
from genaffect_jax.avatars.canvas import Colour, Stencil, ellipse
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import IRIS_COLOURS, WHITE, Skin, mix
from genaffect_jax.avatars.rig import LID, Eye, Face

_LASH = np.array([0.30, 0.85, 1.15, 1.30, 1.40, 1.30, 0.55])
_THIN = np.array([0.0, 0.35, 0.6, 0.75, 0.8, 0.6, 0.1])
_BROW_WIDTH = np.array([0.8, 3.0, 2.8, 1.9, 0.4])
_EYEBALL = (253, 252, 252)
_PUPIL = (24, 18, 28)
_BAG = 1.0 - LID * LID


def draw_eye(brush: Brush, identity: Identity, skin: Skin, face: Face, eye: Eye, lash: Colour) -> None:
    canvas, pose = brush.canvas, brush.pose
    side = "L" if eye.side > 0 else "R"
    upper, lower, fold = pose.faces((eye.upper, eye.lower, eye.fold))
    # The lid between fold and lashes: visible skin that grows as the eye closes.
    canvas.fill((fold, upper[::-1]), skin.shadow, 0.46)
    if eye.aperture > 0.15:
        opening = canvas.path((upper, lower[::-1]))
        canvas.fill(opening, _EYEBALL)
        inside = canvas.clip(opening)
        _iris(brush, identity, eye, inside)
        # The lid's shadow on the eyeball.
        canvas.stroke(upper, 3.2 * _LASH, (60, 40, 80), 0.20, inside)
    canvas.stroke(upper, _LASH * (0.82 + 0.42 * identity.lash_length), lash)
    _lashes(brush, identity, eye, lash)
    canvas.stroke(lower, 0.75 * _THIN, skin.line, 0.75)
    canvas.stroke(fold[1:], 0.85 * _THIN[1:], skin.line, 0.20 + 0.45 * identity.eyelid_fold)
    _under_eye(brush, identity, skin, face, eye, side)


def _iris(brush: Brush, identity: Identity, eye: Eye, inside: Stencil) -> None:
    colour = IRIS_COLOURS[identity.iris_colour]
    (x, y), r = eye.iris, eye.iris_radius
    rim, glow = mix(colour, (16, 10, 30), 0.55), mix(colour, (255, 248, 214), 0.40)
    discs = (
        (ellipse(x, y, r, r), rim, 1.0),
        (ellipse(x, y + 0.3, 0.85 * r, 0.85 * r), colour, 1.0),
        (ellipse(x, y + 0.42 * r, 0.58 * r, 0.36 * r), glow, 0.75),
        (ellipse(x, y, 0.46 * r, 0.46 * r), _PUPIL, 1.0),
        (ellipse(x - 0.34 * r, y - 0.36 * r, 0.28 * r, 0.28 * r), WHITE, 0.96),
        (ellipse(x + 0.36 * r, y + 0.34 * r, 0.14 * r, 0.14 * r), WHITE, 0.7),
    )
    for points, (_, tone, alpha) in zip(brush.pose.faces([disc for disc, _, _ in discs]), discs, strict=True):
        brush.canvas.fill(points, tone, alpha, inside)


def _lashes(brush: Brush, identity: Identity, eye: Eye, lash: Colour) -> None:
    """A flick at the outer corner and a lash before it, as long as `lash_length`."""
    length, lines = identity.lash_length, []
    for i, reach in ((6, 6.5), (5, 5.2)):
        x, y = eye.upper[i].tolist()
        out = reach * length
        lines.append(((x, y), (x + 0.62 * eye.side * out, y - 0.20 * out), (x + eye.side * out, y - 0.85 * out)))
    brush.lines(lines, (1.3, 0.85, 0.1), lash, min(1.0, 4.0 * length))


def _under_eye(brush: Brush, identity: Identity, skin: Skin, face: Face, eye: Eye, side: str) -> None:
    """The crease of a raised cheek or tightened lid below the eye, and crow's feet beside it."""
    cheek, tight, age = face.au[f"AU6{side}"], face.au[f"AU7{side}"], identity.wrinkles
    alpha = min(0.85, 0.60 * cheek + 0.35 * tight + 0.45 * age)
    bag = eye.lower.copy()
    bag[:, 1] = bag[:, 1] * 0.35 + (identity.eye_height - 3.0) * 0.65 + 9.5 - 2.6 * cheek + (2.0 - 4.5 * cheek) * _BAG
    brush.line(bag[1:6], (0.1, 0.7, 0.95, 0.7, 0.1), skin.line, alpha * 0.55)
    crow = min(0.7, 0.55 * cheek * (0.35 + 0.65 * age) + 0.28 * age)
    x, y = eye.upper[6].tolist()
    s = eye.side
    feet = [
        ((x + s * 4.0, y + 0.7 * dy), (x + s * 7.0, y + 1.1 * dy), (x + s * 10.0, y + 1.7 * dy))
        for dy in (-5.0, 0.0, 5.0)
    ]
    brush.lines(feet, (0.6, 0.5, 0.05), skin.line, crow)


def draw_brow(brush: Brush, identity: Identity, points: np.ndarray, colour: Colour) -> None:
    brush.line(points, identity.brow_thickness * _BROW_WIDTH, colour, lift=3.0)
