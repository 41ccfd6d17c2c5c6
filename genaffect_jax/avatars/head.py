"""The bare head: skin, ears, nose, cheeks, freckles and the lines that age and expression draw."""

from __future__ import annotations

import numpy as np

from genaffect_jax.avatars.brush import Brush
from genaffect_jax.avatars.canvas import Canvas, Points, ellipse
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import Skin, mix
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.avatars.rig import BROW, SIDES, Face, half_width

HEAD_DEPTH = 5.0
EAR_DEPTH = -12.0


def outline(pose: Pose, face: Face) -> Points:
    """The silhouette of the head in image coordinates. The chin lies nearer than the skull."""
    depth = HEAD_DEPTH + 9.0 * np.maximum(face.outline[:, 1:], 0.0) / 80.0
    return pose.layer(face.outline, depth)


def draw_ears(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose) -> None:
    size = identity.ear_size
    y = 6.0 + identity.ear_height
    for _, sign in SIDES:
        x = sign * (half_width(identity) - 1.0)

        def ear(points: tuple[tuple[float, float], ...], x: float = x, sign: float = sign) -> Points:
            return pose.layer(np.array([(x + sign * a * size, y + b * size) for a, b in points]), EAR_DEPTH)

        shape = ear(((-5.0, -15.0), (5.0, -17.0), (10.5, -9.0), (8.5, 3.0), (4.5, 13.0), (-1.0, 16.0), (-6.0, 8.0)))
        canvas.fill(shape, mix(skin.base, skin.shadow, 0.22))
        canvas.fill(
            ear(((-2.0, -9.0), (4.0, -11.0), (6.5, -5.0), (4.0, 2.0), (0.5, 9.0), (-3.0, 4.0))), skin.shadow, 0.75
        )
        canvas.stroke(ear(((0.0, -8.0), (4.2, -6.0), (3.4, 0.0), (0.0, 4.0))), [0.2, 0.8, 0.8, 0.1], skin.line, 0.45)


def draw_skin(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face) -> None:
    shape = outline(pose, face)
    path = canvas.path(shape)
    canvas.clip(path, canvas.face)
    canvas.linear(
        path,
        (96.0, 50.0),
        (150.0, 205.0),
        [(0.0, skin.light, 1.0), (0.40, skin.base, 1.0), (1.0, mix(skin.base, skin.shadow, 0.36), 1.0)],
    )
    # Shade along the side away from the light: the silhouette minus itself moved to the left.
    moved = shape + np.array([-7.0, -1.0])
    canvas.fill((shape[1:9], moved[1:9][::-1]), skin.shadow, 0.30, canvas.face)


def draw_cheeks(brush: Brush, identity: Identity, skin: Skin, face: Face) -> None:
    canvas = brush.canvas
    for side, sign in SIDES:
        raised, smile = face.au[f"AU6{side}"], face.au[f"AU12{side}"]
        x, y = sign * (35.0 + 0.4 * identity.eye_spacing), 26.0 + face.cheeks[side]
        strength = (0.05 + 0.46 * identity.blush + 0.10 * raised + 0.06 * smile) * (1.0 - 0.45 * identity.skin_tone)
        canvas.glow(brush.pose.point(x, y), 17.0, skin.blush, strength, canvas.face)
        brush.spot(
            ellipse(x - 3.0, y - 6.0, 8.5, 4.2),
            skin.light,
            (0.14 + 0.20 * raised) * (1.0 - 0.6 * identity.skin_tone),
            clip=canvas.face,
        )
    _freckles(brush, identity, skin, face)
    side = "L" if identity.mole_x > 0 else "R"
    place = ellipse(identity.mole_x, identity.mole_y + 0.3 * face.cheeks[side], identity.mole_size, identity.mole_size)
    brush.spot(place, skin.line, 0.9 if identity.mole_size > 0.0 else 0.0, clip=canvas.face)


# Offsets of freckles from the middle of the cheek; the first ones appear first.
_FRECKLES = (
    (-8.0, -5.0),
    (2.0, -2.0),
    (-2.0, 3.0),
    (8.0, -5.0),
    (-14.0, 0.0),
    (-5.0, -9.0),
    (6.0, 3.0),
    (-10.0, 5.0),
    (12.0, 0.0),
    (-19.0, -3.0),
    (1.0, -8.0),
    (-3.0, 8.0),
)


def _freckles(brush: Brush, identity: Identity, skin: Skin, face: Face) -> None:
    spots = [
        ellipse(sign * (31.0 + dx), 18.0 + dy + 0.6 * face.cheeks[side], 0.85, 0.75)
        for side, sign in SIDES
        for dx, dy in _FRECKLES[: round(identity.freckles * len(_FRECKLES))]
    ]
    brush.spots(spots, mix(skin.line, (170, 84, 40), 0.5), 0.5, clip=brush.canvas.face)


def draw_nose(brush: Brush, identity: Identity, skin: Skin, face: Face) -> None:
    pose, canvas = brush.pose, brush.canvas
    tip_x, tip_y = face.nose_tip
    (lx, ly), (rx, ry) = face.nose_wings["L"], face.nose_wings["R"]
    half = face.nose_half_width
    top = -12.0
    # The side of the bridge that is turned from the light.
    inner = np.array([(5.5, top - 6.0), (3.4, top + 8.0), (3.6, tip_y - 12.0), (4.0, tip_y - 3.0)])
    outer = np.array([(lx - 1.0, ly), (8.2, tip_y - 13.0), (7.6, top + 8.0), (11.0, top - 5.0)])
    canvas.fill((pose.face(inner, 11.0), pose.face(outer, 3.0)), skin.shadow, 0.08 + 0.52 * identity.nose_bridge)
    brush.spot(
        ellipse(tip_x - 0.5, tip_y - 2.5, 0.55 * half, 6.0), skin.light, 0.36 - 0.16 * identity.skin_tone, lift=15.0
    )
    under = np.array(
        [
            (rx, ry - 5.0),
            (rx - 0.6, ry + 1.0),
            (-0.55 * half, tip_y + 5.0),
            (0.0, tip_y + 6.4),
            (0.55 * half, tip_y + 5.0),
            (lx + 0.6, ly + 1.0),
            (lx, ly - 5.0),
        ]
    )
    brush.line(under, (0.1, 1.0, 0.8, 1.1, 0.8, 1.0, 0.1), skin.line, 0.58, lift=7.0)
    nostrils = [ellipse(s * 0.46 * half, tip_y + 4.0, 0.22 * half, 1.5) for s in (-1.0, 1.0)]
    brush.spots(nostrils, skin.line, 0.85, lift=8.0)
    for side, s in SIDES:
        wrinkles = [
            ((s * 1.5, y + 1.0), (s * (1.5 + 0.5 * length), y - 0.6), (s * (1.5 + length), y + 2.0))
            for y, length in ((-9.0, 6.0), (-4.0, 7.5), (1.0, 7.0))
        ]
        brush.lines(wrinkles, (0.3, 0.8, 0.1), skin.line, 0.52 * face.au[f"AU9{side}"], lift=9.0)


def draw_lines(brush: Brush, identity: Identity, skin: Skin, face: Face) -> None:
    """Forehead, frown, nasolabial, dimple and chin lines: faint with age, strong with their action units."""
    au, age, clip = face.au, identity.wrinkles, brush.canvas.face
    brow = BROW - identity.brow_height
    for side, s in SIDES:
        inner, outer, lower = au[f"AU1{side}"], au[f"AU2{side}"], au[f"AU4{side}"]
        for i, height in enumerate((-18.0, -25.0)):
            y = brow + height
            rise = -3.5 * inner
            line = ((0.0, y + rise), (s * 12.0, y + 0.8 * rise - 0.6), (s * 25.0, y - 3.5 * outer + 1.0))
            alpha = min(0.5, 0.26 * age + 0.20 * inner + 0.16 * outer)
            brush.line(line, (0.75, 0.75, 0.1), skin.line, alpha * (1.0 - 0.3 * i), clip=clip)
        x, y = s * (6.4 - 1.6 * lower), brow + 4.0 * lower
        furrow = ((x + s * 1.2, y - 6.0), (x, y), (x + s * 0.6, y + 7.0))
        brush.line(furrow, (0.1, 1.0, 0.1), skin.line, min(0.75, 0.66 * lower + 0.26 * age), lift=2.0, clip=clip)
        _mouth_lines(brush, identity, skin, face, side, s)
    raised = au["AU17"]
    y = float(face.mouth.outer_lower[4, 1]) + 5.0
    boss = ((-11.0, y + 3.5), (0.0, y - 1.5 * raised), (11.0, y + 3.5))
    brush.line(boss, (0.1, 0.7 + 0.5 * raised, 0.1), skin.line, 0.14 + 0.46 * raised, lift=3.0, clip=clip)
    dents = [
        ((dx - 2.2, y + dy), (dx, y + dy + 0.9), (dx + 2.2, y + dy))
        for dx, dy in ((-6.0, 7.5), (5.5, 7.0), (0.0, 10.5))
    ]
    brush.lines(dents, (0.1, 0.7, 0.1), skin.line, 0.45 * raised, lift=2.0, clip=clip)


def _mouth_lines(brush: Brush, identity: Identity, skin: Skin, face: Face, side: str, s: float) -> None:
    au, age, clip = face.au, identity.wrinkles, brush.canvas.face
    x, y = face.mouth.inner_upper[8 if s > 0 else 0].tolist()
    wing_x, wing_y = face.nose_wings[side]
    smile, snarl, wrinkle = au[f"AU12{side}"], au[f"AU10{side}"], au[f"AU9{side}"]
    start_x, start_y, run, fall = wing_x + s * 2.0, wing_y - 4.5, x + s * 5.5 - wing_x - s * 2.0, y + 4.0 - wing_y + 4.5
    bow = s * (2.0 + 2.5 * smile)
    fold = (
        (start_x, start_y),
        (start_x + 0.36 * run + bow, start_y + 0.30 * fall),
        (start_x + 0.78 * run + bow, start_y + 0.66 * fall),
        (start_x + run, start_y + fall),
    )
    alpha = min(0.6, 0.42 * smile + 0.40 * snarl + 0.28 * wrinkle + 0.36 * age)
    brush.line(fold, (0.1, 0.9, 1.0, 0.1), skin.line, alpha, clip=clip)
    dimple = ((x + s * 2.4, y - 4.4), (x + s * 4.2, y), (x + s * 2.6, y + 4.2))
    brush.line(dimple, (0.1, 1.15, 0.1), skin.line, 0.75 * au[f"AU14{side}"], clip=clip)
    droop = ((x + s * 1.0, y + 1.0), (x + s * 3.2, y + 4.5), (x + s * 3.4, y + 9.0))
    brush.line(droop, (0.3, 0.9, 0.1), skin.line, min(0.6, 0.5 * au[f"AU15{side}"] + 0.22 * age), clip=clip)
    stretch = ((x + s * 4.0, y - 7.0), (x + s * 6.5, y + 1.0), (x + s * 5.0, y + 9.0))
    brush.line(stretch, (0.1, 0.9, 0.1), skin.line, 0.45 * au[f"AU20{side}"], clip=clip)
