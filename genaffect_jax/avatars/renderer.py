"""Draws one avatar: an identity with an expression."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from genaffect_jax.avatars import eyes, hair, head, headwear, lips, outfit, rig, wear
from genaffect_jax.avatars.backdrop import draw_backdrop
from genaffect_jax.avatars.brush import Brush
from genaffect_jax.avatars.canvas import DESIGN, Canvas
from genaffect_jax.avatars.hair_shapes import front_shapes
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import LIP_COLOURS, mix, skin
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.expressions.action_units import validate

# Styles whose hair or cloth lies over the ears.
_COVERS_EARS = ("bob", "fringe_bob", "long_straight", "long_wavy", "headscarf")


def render(identity: Identity, expression: Float[np.ndarray, " W"], size: int = 256) -> UInt8[np.ndarray, "H W 3"]:
    """The image of `identity` showing `expression`.

    A size below 256 is drawn at the next multiple that is 256 or more and averaged down, because the rasteriser widens
    every shape by half a pixel: drawn directly, thin lines would thicken and small images show coarser faces.
    The same arguments give the same bytes. Pixels of the background and the clothes do not depend on the action
    units; head angles move the head only.

    Args:
        identity: who, e.g. from `sample_identity`.
        expression: float32 `(WIDTH,)`, channels as in `expressions.action_units.CHANNELS`.
        size: width and height in pixels, at least 16.

    Returns:
        uint8 `(size, size, 3)`, sRGB.

    Raises:
        ValueError: the expression has a wrong shape or a value out of range, or `size` is below 16.
    """
    expression = validate(expression)
    if size < 16:
        raise ValueError(f"avatar size {size}: must be 16 pixels or more")
    oversampling = -(-int(DESIGN) // size)
    canvas = Canvas(size * oversampling)
    face = rig.solve(identity, expression)
    pose = Pose(expression)
    brush = Brush(canvas, pose)
    tones = hair.Tones.of(identity)
    tint = skin(identity.skin_tone, identity.skin_undertone, identity.lip_tint, LIP_COLOURS[identity.lip_colour])
    shapes = front_shapes(identity, pose)
    ears = identity.hair_style not in _COVERS_EARS

    draw_backdrop(canvas, identity)
    hair.draw_back(canvas, identity, pose, tones)
    outfit.draw_neck(canvas, identity, tint)
    outfit.draw_neck_shadow(canvas, identity, tint, face.jaw)
    outfit.draw_outfit(canvas, identity, tint)
    if ears:
        head.draw_ears(canvas, identity, tint, pose)
        wear.draw_earrings(canvas, identity, pose)
    head.draw_skin(canvas, identity, tint, pose, face)
    hair.draw_cast_shadow(canvas, tint, shapes)
    head.draw_cheeks(brush, identity, tint, face)
    wear.draw_facial_hair(canvas, identity, pose, face, tones)
    head.draw_lines(brush, identity, tint, face)
    lips.draw_mouth(canvas, tint, pose, face)
    head.draw_nose(brush, identity, tint, face)
    lash = mix(tones.base, (34, 22, 30), 0.78)
    for eye in face.eyes.values():
        eyes.draw_eye(brush, identity, tint, face, eye, lash)
    if identity.hair_style == "headscarf":
        headwear.draw_drape(canvas, identity, pose, face)
    hair.draw_front(canvas, identity, pose, tones, shapes)
    brow_colour = mix(tones.base, (58, 34, 32), 0.45)
    for points in face.brows.values():
        eyes.draw_brow(brush, identity, points, brow_colour)
    wear.draw_glasses(canvas, identity, pose)
    return _average(canvas.render(), oversampling)


def _average(pixels: UInt8[np.ndarray, "H W 3"], factor: int) -> UInt8[np.ndarray, "h w 3"]:
    """Means over squares of `factor` x `factor` pixels, rounded half up, in whole numbers.

    Sixteen bits hold every sum: `factor` is at most 16, and 255 * 16 * 16 + 128 < 65536.
    """
    if factor == 1:
        return pixels
    rows = pixels[::factor].astype(np.uint16)
    for i in range(1, factor):
        rows += pixels[i::factor]
    total = rows[:, ::factor].copy()
    for i in range(1, factor):
        total += rows[:, i::factor]
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)
