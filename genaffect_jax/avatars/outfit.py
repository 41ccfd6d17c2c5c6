"""Neck, shoulders and clothes. They do not move with the face."""

from __future__ import annotations

import numpy as np

from genaffect_jax.avatars.canvas import Canvas, Colour, Points, ellipse
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import CLOTH_COLOURS, Skin, mix, shade

BOTTOM = 262.0


def _arc(half: float, y: float, sag: float) -> Points:
    """A hanging line from one side of the neck to the other, left to right."""
    return np.array(
        [
            (128.0 - half, y),
            (128.0 - 0.6 * half, y + 0.72 * sag),
            (128.0, y + sag),
            (128.0 + 0.6 * half, y + 0.72 * sag),
            (128.0 + half, y),
        ]
    )


def draw_neck(canvas: Canvas, identity: Identity, skin: Skin) -> None:
    half = 24.0 * identity.neck_width
    wide = 78.0 * identity.shoulder_width
    right = [(half, 150.0), (half, 192.0), (half + 5.0, 206.0), (0.55 * wide, 219.0), (wide, 236.0), (wide, BOTTOM)]
    left = np.array([(128.0 - x, y) for x, y in right])
    canvas.fill((left, np.array([(128.0 + x, y) for x, y in reversed(right)])), mix(skin.base, skin.shadow, 0.30))


def draw_neck_shadow(canvas: Canvas, identity: Identity, skin: Skin, chin: float) -> None:
    """The shadow the head throws on the neck; `chin` is how far the chin has dropped, design units."""
    half = 24.0 * identity.neck_width
    y = 196.0 + min(0.6 * chin, 10.0)
    canvas.fill(
        (
            np.array([(128.0 - half, 150.0), (128.0 - half, y - 4.0)]),
            _arc(half, y - 4.0, 11.0),
            np.array([(128.0 + half, y - 4.0), (128.0 + half, 150.0)]),
        ),
        skin.shadow,
        0.85,
    )


def draw_outfit(canvas: Canvas, identity: Identity, skin: Skin) -> None:
    cloth = CLOTH_COLOURS[identity.outfit_colour]
    accent = CLOTH_COLOURS[identity.outfit_accent]
    dark, light = shade(cloth, -0.24), shade(cloth, 0.16)
    neck = 24.0 * identity.neck_width
    wide = 92.0 * identity.shoulder_width
    style = identity.outfit
    shoulder = [
        (neck + 8.0, 207.0),
        (0.62 * wide, 216.0),
        (0.92 * wide, 229.0),
        (wide + 2.0, 246.0),
        (wide + 6.0, BOTTOM),
    ]
    left = np.array([(128.0 - x, y) for x, y in reversed(shoulder)])
    right = np.array([(128.0 + x, y) for x, y in shoulder])
    collars = {
        "crew": _arc(neck + 8.0, 207.0, 17.0),
        "stripes": _arc(neck + 8.0, 207.0, 17.0),
        "hoodie": _arc(neck + 8.0, 207.0, 20.0),
        "turtleneck": _arc(neck + 8.0, 207.0, 12.0),
        "v_neck": np.array([(120.0 - neck, 207.0), (128.0, 246.0), (136.0 + neck, 207.0)]),
        "shirt": np.array([(120.0 - neck, 207.0), (128.0, 240.0), (136.0 + neck, 207.0)]),
        "blazer": np.array([(120.0 - neck, 207.0), (128.0, 270.0), (136.0 + neck, 207.0)]),
    }
    collar = collars[style]
    pointed = len(collar) == 3
    neckline = (collar[:2], collar[1:]) if pointed else (collar,)
    if style == "blazer":
        inner = _arc(neck + 7.0, 208.0, 16.0)
        canvas.fill((inner, np.array([(128.0 + 60.0, BOTTOM), (128.0 - 60.0, BOTTOM)])), accent)
        canvas.stroke(inner, [1.4] * 5, shade(accent, -0.2), 0.8)
    body = canvas.path((left, *neckline, right))
    canvas.linear(body, (90.0, 205.0), (170.0, 262.0), [(0.0, light, 1.0), (0.45, cloth, 1.0), (1.0, dark, 1.0)])
    if style == "stripes":
        region = canvas.clip(body)
        for y in (222.0, 237.0, 252.0):
            canvas.stroke(_arc(110.0, y - 2.0, 7.0), [3.2] * 5, accent, 0.92, region)
    if style in ("crew", "stripes"):
        canvas.stroke(collar + np.array([0.0, 1.0]), [2.6] * 5, accent if style == "stripes" else dark, 0.9)
    elif style == "v_neck":
        canvas.stroke(collar[:2], [2.4, 2.4], dark)
        canvas.stroke(collar[1:], [2.4, 2.4], dark)
    elif style == "turtleneck":
        _turtleneck(canvas, neck, cloth, dark, light)
    elif style == "hoodie":
        _hood(canvas, neck, cloth, dark, accent)
    elif style == "shirt":
        _lapels(canvas, neck, light, dark, 224.0, 22.0)
        canvas.fill(
            (np.array([(127.2, 238.0), (128.8, 238.0)]), np.array([(128.8, BOTTOM), (127.2, BOTTOM)])), dark, 0.8
        )
        canvas.fill(ellipse(128.0, 250.0, 1.7, 1.7), accent)
    elif style == "blazer":
        _lapels(canvas, neck, shade(cloth, 0.10), dark, 250.0, 30.0)
    # A fold under each arm grounds the body.
    for sign in (-1.0, 1.0):
        x = 128.0 + sign * 0.68 * wide
        canvas.stroke(
            np.array([(x, 244.0), (x - sign * 2.0, 252.0), (x - sign * 1.0, BOTTOM)]), [0.2, 1.1, 1.5], dark, 0.7
        )


def _turtleneck(canvas: Canvas, neck: float, cloth: Colour, dark: Colour, light: Colour) -> None:
    top, low = _arc(neck + 1.5, 191.0, 9.0), _arc(neck + 9.0, 208.0, 13.0)
    canvas.linear(
        (top, low[::-1]), (98.0, 200.0), (160.0, 210.0), [(0.0, light, 1.0), (0.5, cloth, 1.0), (1.0, dark, 1.0)]
    )
    canvas.stroke(low, [0.5, 1.2, 1.4, 1.2, 0.5], dark, 0.8)


def _hood(canvas: Canvas, neck: float, cloth: Colour, dark: Colour, accent: Colour) -> None:
    for sign in (-1.0, 1.0):
        outer = np.array(
            [
                (128.0 + sign * x, y)
                for x, y in ((neck - 3, 196.0), (neck + 17, 204.0), (neck + 14, 220.0), (0.0, 240.0))
            ]
        )
        inner = np.array(
            [(128.0 + sign * x, y) for x, y in ((0.0, 226.0), (neck - 2, 214.0), (neck, 206.0), (neck - 3, 196.0))]
        )
        canvas.fill((outer, inner), mix(cloth, dark, 0.45))
        canvas.stroke(inner, [0.6, 1.2, 1.0, 0.4], dark, 0.7)
        string = np.array([(128.0 + sign * 8.0, 231.0), (128.0 + sign * 9.0, 240.0), (128.0 + sign * 8.4, 252.0)])
        canvas.stroke(string, [1.1, 1.1, 1.4], accent)


def _lapels(canvas: Canvas, neck: float, colour: Colour, line: Colour, tip: float, reach: float) -> None:
    for sign in (-1.0, 1.0):
        top, inside = (128.0 + sign * (neck - 1.0), 199.0), (128.0 + sign * 1.0, tip + 16.0)
        outside, back = (128.0 + sign * (reach + 2.0), tip + 8.0), (128.0 + sign * (neck + 11.0), 208.0)
        canvas.fill((np.array([top, inside]), np.array([outside, back])), colour)
        canvas.stroke(np.array([inside, outside]), [0.5, 0.9], line, 0.8)
        canvas.stroke(np.array([outside, back]), [0.9, 0.4], line, 0.8)
