"""The bare head: skin, ears, nose, cheeks, freckles and the lines that age and expression draw."""

from __future__ import annotations

import numpy as np

from genaffect_jax.data.avatars.canvas import Canvas, Points, ellipse
from genaffect_jax.data.avatars.identity import Identity
from genaffect_jax.data.avatars.palette import Skin, mix
from genaffect_jax.data.avatars.pose import Pose
from genaffect_jax.data.avatars.rig import SIDES, Face, half_width

HEAD_DEPTH = 5.0
EAR_DEPTH = -12.0


def outline(pose: Pose, face: Face) -> Points:
    """The silhouette of the head in picture coordinates. The chin lies nearer than the skull."""
    depth = HEAD_DEPTH + 9.0 * np.maximum(face.outline[:, 1], 0.0) / 80.0
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
    canvas.clip(shape, canvas.face)
    canvas.linear(shape, (96.0, 50.0), (150.0, 205.0),
                  [(0.0, skin.light, 1.0), (0.40, skin.base, 1.0), (1.0, mix(skin.base, skin.shadow, 0.36), 1.0)])  # fmt: skip
    # Shade along the side away from the light: the silhouette minus itself moved to the left.
    moved = shape + np.array([-9.0, -1.0])
    canvas.fill((shape[1:9], moved[1:9][::-1]), skin.shadow, 0.42, canvas.face)


def draw_cheeks(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face) -> None:
    for side, sign in SIDES:
        raised = face.au[f"AU6{side}"]
        smile = face.au[f"AU12{side}"]
        x, y = sign * (35.0 + 0.4 * identity.eye_spacing), 25.0 + face.cheeks[side]
        centre = pose.point(x, y)
        strength = 0.10 + 0.40 * identity.blush + 0.10 * raised + 0.06 * smile
        canvas.glow(centre, 17.0, skin.blush, strength, canvas.face)
        canvas.fill(pose.face(ellipse(x - 3.0, y - 6.0, 8.0, 4.0)), skin.light, 0.16 + 0.20 * raised, canvas.face)
    if identity.freckles > 0.0:
        _freckles(canvas, identity, skin, pose, face)
    if identity.mole_size > 0.0:
        side = "L" if identity.mole_x > 0 else "R"
        place = ellipse(
            identity.mole_x, identity.mole_y + 0.3 * face.cheeks[side], identity.mole_size, identity.mole_size
        )
        canvas.fill(pose.face(place), skin.line, 0.9, canvas.face)


# Offsets of freckles from the middle of the cheek; the first ones appear first.
_FRECKLES = ((-8.0, -5.0), (2.0, -2.0), (-2.0, 3.0), (8.0, -5.0), (-14.0, 0.0), (-5.0, -9.0), (6.0, 3.0), (-10.0, 5.0),
             (12.0, 0.0), (-19.0, -3.0), (1.0, -8.0), (-3.0, 8.0))  # fmt: skip


def _freckles(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face) -> None:
    for side, sign in SIDES:
        for i in range(round(identity.freckles * len(_FRECKLES))):
            dx, dy = _FRECKLES[i]
            spot = ellipse(sign * (31.0 + dx), 18.0 + dy + 0.6 * face.cheeks[side], 0.95, 0.85)
            canvas.fill(pose.face(spot), mix(skin.line, (170, 84, 40), 0.45), 0.55, canvas.face)


def draw_nose(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face) -> None:
    tip_x, tip_y = face.nose_tip
    (lx, ly), (rx, ry) = face.nose_wings["L"], face.nose_wings["R"]
    half = face.nose_half_width
    top = -12.0

    def raised(points: list[tuple[float, float]], lift: float) -> Points:
        return pose.face(np.array(points), lift)

    # The side of the bridge that is turned from the light.
    inner = raised([(5.5, top - 6.0), (3.4, top + 8.0), (3.6, tip_y - 12.0), (4.0, tip_y - 3.0)], 11.0)
    outer = raised([(lx - 1.0, ly), (8.2, tip_y - 13.0), (7.6, top + 8.0), (11.0, top - 5.0)], 3.0)
    canvas.fill((inner, outer), skin.shadow, 0.16 + 0.40 * identity.nose_bridge, canvas.face)
    ball = raised([(x, y) for x, y in ellipse(tip_x, tip_y - 2.0, 0.62 * half, 7.0).tolist()], 15.0)
    canvas.fill(ball, skin.light, 0.34)
    under = np.concatenate([
        pose.face(np.array([(rx, ry - 5.0), (rx - 0.6, ry + 1.0), (-0.55 * half, tip_y + 5.0)]), 5.0),
        pose.face(np.array([(0.0, tip_y + 6.6)]), 14.0),
        pose.face(np.array([(0.55 * half, tip_y + 5.0), (lx + 0.6, ly + 1.0), (lx, ly - 5.0)]), 5.0),
    ])  # fmt: skip
    canvas.stroke(under, [0.1, 1.0, 0.8, 1.2, 0.8, 1.0, 0.1], skin.line, 0.62)
    for sign in (-1.0, 1.0):
        nostril = ellipse(sign * 0.46 * half, tip_y + 4.0, 0.22 * half, 1.5)
        canvas.fill(pose.face(nostril, 9.0), skin.line, 0.85)
    _nose_wrinkles(canvas, skin, pose, face)


def _nose_wrinkles(canvas: Canvas, skin: Skin, pose: Pose, face: Face) -> None:
    for side, sign in SIDES:
        wrinkle = face.au[f"AU9{side}"]
        for y, length in ((-9.0, 7.0), (-3.5, 8.5), (2.0, 8.0)):
            line = np.array(
                [(sign * 1.5, y + 1.0), (sign * (1.5 + 0.5 * length), y - 1.0), (sign * (1.5 + length), y + 2.5)]
            )
            canvas.stroke(pose.face(line, 9.0), [0.3, 0.95, 0.1], skin.line, 0.72 * wrinkle)


def draw_lines(canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face) -> None:
    """Forehead, frown, nasolabial, dimple and chin lines: faint with age, strong with their action units."""
    au, age = face.au, identity.wrinkles
    brow = -24.5 - identity.brow_height
    for i, height in enumerate((-17.0, -25.0)):
        y = brow + height
        for side, sign in SIDES:
            inner, outer = au[f"AU1{side}"], au[f"AU2{side}"]
            alpha = min(0.6, 0.30 * age + 0.22 * inner + 0.16 * outer)
            rise = -3.5 * inner
            line = np.array(
                [(0.0, y + rise), (sign * 12.0, y + 0.8 * rise - 0.6), (sign * 25.0, y - 3.5 * outer + 1.0)]
            )
            canvas.stroke(pose.face(line), [0.8, 0.8, 0.1], skin.line, alpha * (1.0 - 0.25 * i), canvas.face)
    for side, sign in SIDES:
        lower = au[f"AU4{side}"]
        x = sign * (6.2 - 1.6 * lower)
        furrow = np.array(
            [
                (x + sign * 1.2, brow - 5.0 + 3.0 * lower),
                (x, brow + 1.0 + 4.0 * lower),
                (x + sign * 0.6, brow + 8.0 + 4.0 * lower),
            ]
        )
        canvas.stroke(
            pose.face(furrow, 2.0), [0.1, 1.05, 0.1], skin.line, min(0.8, 0.70 * lower + 0.28 * age), canvas.face
        )
        _mouth_lines(canvas, identity, skin, pose, face, side, sign)
    chin_raise = au["AU17"]
    x, y = 0.0, float(face.mouth.outer_lower[4, 1]) + 5.0
    boss = np.array([(x - 11.0, y + 3.5), (x, y - 1.5 * chin_raise), (x + 11.0, y + 3.5)])
    canvas.stroke(
        pose.face(boss, 3.0), [0.1, 0.7 + 0.5 * chin_raise, 0.1], skin.line, 0.16 + 0.50 * chin_raise, canvas.face
    )
    for dx, dy in ((-5.0, 7.0), (4.5, 6.5), (0.0, 10.0), (-8.5, 11.5), (8.0, 11.0)):
        dent = np.array([(x + dx - 2.0, y + dy), (x + dx, y + dy + 0.9), (x + dx + 2.0, y + dy)])
        canvas.stroke(pose.face(dent, 2.0), [0.1, 0.7, 0.1], skin.line, 0.55 * chin_raise, canvas.face)


def _mouth_lines(
    canvas: Canvas, identity: Identity, skin: Skin, pose: Pose, face: Face, side: str, sign: float
) -> None:
    au, age = face.au, identity.wrinkles
    corner_x, corner_y = face.mouth.inner_upper[8 if sign > 0 else 0].tolist()
    wing_x, wing_y = face.nose_wings[side]
    smile, snarl, wrinkle = au[f"AU12{side}"], au[f"AU10{side}"], au[f"AU9{side}"]
    alpha = min(0.75, 0.55 * smile + 0.45 * snarl + 0.30 * wrinkle + 0.42 * age)
    fold = np.array([
        (wing_x + sign * 2.5, wing_y - 5.0),
        (wing_x + sign * (7.5 + 3.0 * smile), wing_y + 3.0 - 2.0 * snarl),
        (corner_x + sign * (5.0 + 1.5 * smile), corner_y - 7.0),
        (corner_x + sign * 5.5, corner_y + 2.0),
    ])  # fmt: skip
    canvas.stroke(pose.face(fold), [0.1, 1.0, 1.05, 0.1], skin.line, alpha * 0.75, canvas.face)
    dimple = np.array([
        (corner_x + sign * 4.0, corner_y - 5.5),
        (corner_x + sign * 6.6, corner_y),
        (corner_x + sign * 4.0, corner_y + 5.5),
    ])  # fmt: skip
    canvas.stroke(pose.face(dimple), [0.1, 1.35, 0.1], skin.line, 0.85 * au[f"AU14{side}"], canvas.face)
    tip = np.array(
        [
            (corner_x + sign * 1.0, corner_y),
            (corner_x + sign * 3.4, corner_y + 4.0),
            (corner_x + sign * 3.6, corner_y + 9.0),
        ]
    )
    canvas.stroke(
        pose.face(tip), [0.3, 0.95, 0.1], skin.line, min(0.7, 0.6 * au[f"AU15{side}"] + 0.25 * age), canvas.face
    )
    stretch = np.array(
        [
            (corner_x + sign * 4.0, corner_y - 7.0),
            (corner_x + sign * 7.0, corner_y + 1.0),
            (corner_x + sign * 5.0, corner_y + 9.0),
        ]
    )
    canvas.stroke(pose.face(stretch), [0.1, 0.9, 0.1], skin.line, 0.5 * au[f"AU20{side}"], canvas.face)
