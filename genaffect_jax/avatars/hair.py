"""Draws hair: the part behind the head, its shadow on the face, the part in front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genaffect_jax.avatars.canvas import Canvas, Colour, Points, ellipse
from genaffect_jax.avatars.hair_shapes import Head, Shape, head_of, lobes
from genaffect_jax.avatars.headwear import draw_headwear
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import GREY, HAIR_COLOURS, Skin, mix
from genaffect_jax.avatars.pose import Pose

BACK_DEPTH = -14.0  # of the hair behind the head


@dataclass(frozen=True)
class Tones:
    """Colours of one head of hair."""

    base: Colour
    dark: Colour
    light: Colour

    @staticmethod
    def of(identity: Identity) -> Tones:
        base = mix(HAIR_COLOURS[identity.hair_colour], GREY, 0.85 * identity.hair_grey)
        r, g, b = base
        return Tones(base, (round(0.66 * r), round(0.60 * g), round(0.60 * b)), mix(base, (255, 236, 214), 0.26))


def draw_back(canvas: Canvas, identity: Identity, pose: Pose, tones: Tones) -> None:
    """Hair behind the neck and shoulders."""
    h = head_of(identity, pose)
    w, v, style = h.wide, h.volume, identity.hair_style

    def mass(right: list[tuple[float, float]], top: float) -> Points:
        points = np.array([*((-x, y) for x, y in reversed(right)), (0.0, top), *right])
        return pose.hang(points, BACK_DEPTH, 30.0, 110.0)

    if style in ("bob", "fringe_bob"):
        shape = mass(
            [(0.7 * w, -70.0), (w + 6.0, -30.0), (w + 9.0, 20.0), (w + 8.0, 52.0), (0.86 * w, 66.0), (0.4 * w, 66.0)],
            -84.0,
        )
        canvas.fill(shape, tones.dark)
    elif style == "long_straight":
        shape = mass(
            [(0.7 * w, -70.0), (w + 6.0, -30.0), (w + 9.0, 30.0), (w + 12.0, 90.0), (w + 6.0, 126.0), (0.4 * w, 132.0)],
            -84.0,
        )
        canvas.fill(shape, tones.dark)
    elif style == "long_wavy":
        shape = mass(
            [
                (0.7 * w, -72.0),
                (w + 9.0, -34.0),
                (w + 10.0, 6.0),
                (w + 20.0, 40.0),
                (w + 14.0, 68.0),
                (w + 24.0, 96.0),
                (w + 10.0, 122.0),
                (0.4 * w, 124.0),
            ],
            -86.0,
        )
        canvas.fill(shape, tones.dark)
    elif style == "curly":
        canvas.fill((*lobes(h, 3.0 + 6.0 * v, 34.0, 14, 6.0, BACK_DEPTH),), tones.dark)
    elif style == "afro":
        canvas.fill((*lobes(h, 8.0 + 14.0 * v, 46.0, 24, 2.4, BACK_DEPTH),), mix(tones.base, tones.dark, 0.7))
    elif style == "top_bun":
        x, y = pose.layer(np.array([(0.0, -88.0 - 4.0 * v)]), -4.0)[0].tolist()
        canvas.fill(ellipse(x, y, 21.0 * v, 18.0 * v), tones.base)
        canvas.fill(ellipse(x - 3.0, y - 5.0 * v, 12.0 * v, 7.0 * v), tones.light, 0.5)
        canvas.fill(ellipse(x, y + 15.0 * v, 15.0, 5.0), tones.dark)
    elif style == "space_buns":
        for s in (-1.0, 1.0):
            x, y = pose.layer(np.array([(s * 0.74 * w, -78.0 - 4.0 * v)]), -4.0)[0].tolist()
            canvas.fill(ellipse(x, y, 18.0 * v, 17.0 * v), tones.base)
            canvas.fill(ellipse(x - 3.0, y - 5.0 * v, 9.0 * v, 6.0 * v), tones.light, 0.5)
            canvas.fill(ellipse(x - s * 7.0, y + 10.0, 10.0, 7.0), tones.dark, 0.7)
    elif style == "ponytail":
        s = h.part
        tail = np.array(
            [
                (s * 0.30 * w, -78.0),
                (s * 0.78 * w, -84.0),
                (s * (w + 14.0), -58.0),
                (s * (w + 20.0), -10.0),
                (s * (w + 24.0), 40.0),
                (s * (w + 8.0), 92.0),
                (s * (w + 2.0), 50.0),
                (s * (w - 4.0), 0.0),
                (s * 0.7 * w, -50.0),
            ]
        )
        canvas.fill(pose.hang(tail, BACK_DEPTH, 20.0, 110.0), tones.dark)
        inner = tail * np.array([0.97, 0.92]) + np.array([s * 1.0, -2.0])
        canvas.fill(pose.hang(inner, BACK_DEPTH, 20.0, 110.0), tones.base, 0.75)


def draw_cast_shadow(canvas: Canvas, skin: Skin, shapes: list[Shape]) -> None:
    """The shadow the hair throws on the forehead and cheeks."""
    down = np.array([1.0, 5.0])
    for shape in shapes:
        moved = shape + down if isinstance(shape, np.ndarray) else tuple(chain + down for chain in shape)
        canvas.fill(moved, skin.shadow, 0.55, canvas.face)


def draw_front(canvas: Canvas, identity: Identity, pose: Pose, tones: Tones, shapes: list[Shape]) -> None:
    style = identity.hair_style
    if style in ("headscarf", "beanie"):
        draw_headwear(canvas, identity, pose, shapes)
        return
    alpha = 0.78 if style == "buzz" else 1.0
    bright, deep = mix(tones.base, tones.light, 0.55), mix(tones.base, tones.dark, 0.75)
    stops = [(0.0, bright, alpha), (0.42, tones.base, alpha), (1.0, deep, alpha)]
    for shape in shapes:
        canvas.linear(shape, (88.0, 24.0), (176.0, 150.0), stops)
    h = head_of(identity, pose)
    w, v, p = h.wide, h.volume, h.part
    if style in ("bald", "receding"):
        return
    if style in ("curly", "afro"):
        _draw_curls(canvas, h, tones, 8.0 * v if style == "curly" else 16.0 * v)
        return
    # A band of light across the crown, and a few strands.
    if style != "buzz":
        top = -66.0 - 5.0 * v
        band = h.silhouette(
            [(-0.66 * w, top + 16.0), (-0.44 * w, top + 3.0), (-0.12 * w, top - 2.0), (0.2 * w, top + 1.0)], 6.0
        )
        canvas.stroke(band, [0.2, 2.8, 2.6, 0.2], tones.light, 0.75)
        for start, end, bend in ((-0.30, -0.50, -2.0), (0.20, 0.38, 2.0), (0.44, 0.66, 3.0)):
            strand = h.silhouette(
                [(p * start * w, -77.0 - 4.0 * v), (p * (0.5 * (start + end) * w + bend), -69.5), (p * end * w, -60.0)],
                6.0,
            )
            canvas.stroke(strand, [0.1, 0.9, 0.1], tones.dark, 0.45)


def _draw_curls(canvas: Canvas, h: Head, tones: Tones, grow: float) -> None:
    for x, y, r in (
        (-0.72, -0.62, 9.0),
        (-0.30, -0.86, 10.0),
        (0.16, -0.88, 9.0),
        (0.58, -0.70, 9.5),
        (-0.95, -0.14, 8.0),
        (0.94, -0.16, 8.0),
        (-0.1, -0.68, 7.0),
        (0.36, -0.62, 7.0),
    ):
        cx, cy = x * (h.wide + 0.6 * grow), -26.0 + y * (56.0 + 0.6 * grow)
        arc = h.silhouette(
            [
                (cx - r, cy + 0.5 * r),
                (cx - 0.7 * r, cy - 0.6 * r),
                (cx + 0.2 * r, cy - 0.9 * r),
                (cx + r, cy - 0.1 * r),
            ],
            6.0,
        )
        canvas.stroke(arc, [0.2, 1.5, 1.3, 0.2], tones.light if x < 0.2 else tones.dark, 0.7)
