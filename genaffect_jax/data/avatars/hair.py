"""Hair and headwear: a part behind the head and a part in front of it, for every style."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genaffect_jax.data.avatars.canvas import Canvas, Colour, Points, ellipse
from genaffect_jax.data.avatars.identity import Identity
from genaffect_jax.data.avatars.palette import CLOTH_COLOURS, GREY, HAIR_COLOURS, Skin, mix, shade
from genaffect_jax.data.avatars.pose import Pose
from genaffect_jax.data.avatars.rig import Face, half_width

Shape = Points | tuple[Points, ...]
FRONT_DEPTH = 3.0  # of the silhouette of the hair
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


@dataclass(frozen=True)
class _Head:
    """What a style needs to know: sizes of the skull, the pose, the parting."""

    wide: float
    volume: float
    line: float
    part: float
    pose: Pose
    face: Face

    def silhouette(self, points: list[tuple[float, float]], depth: float = FRONT_DEPTH) -> Points:
        return self.pose.layer(np.array(points), depth)

    def on_face(self, points: list[tuple[float, float]], lift: float = 3.0) -> Points:
        return self.pose.face(np.array(points), lift)

    def crown(self, side: float, top: float, low: float) -> list[tuple[float, float]]:
        """The outside of the hair from the left of the picture over the top to the right.

        `side` and `top` are how far it stands off the skull, `low` the head y where it ends.
        """
        wide, top = self.wide + side, top * self.volume
        right = [(0.56 * wide, -75.0 - 0.9 * top), (0.90 * wide, -52.0 - 0.5 * top), (wide, -20.0), (wide - 1.0, low)]
        return [*((-x, y) for x, y in reversed(right)), (0.0, -82.0 - top), *right]

    def hair_line(self, middle: float, corner: float, low: float) -> list[tuple[float, float]]:
        """The edge on the forehead from the right of the picture to the left; `low` where it leaves the head."""
        w, up = self.wide, -self.line
        right = [
            (w - 0.5, low),
            (w - 5.5, 0.5 * low - 12.0),
            (0.86 * w, corner + 6.0 + up),
            (0.62 * w, corner - 8.0 + up),
        ]
        right.append((0.30 * w, middle - 1.0 + up))
        return [*right, (0.0, middle + up), *((-x, y) for x, y in reversed(right))]


# --- parts in front of the head: each returns closed shapes in picture coordinates ---------------------------------


def _buzz(h: _Head) -> list[Shape]:
    return [(h.silhouette(h.crown(0.6, 1.5, -8.0)), h.on_face(h.hair_line(-52.0, -40.0, -6.0)))]


def _receding(h: _Head) -> list[Shape]:
    shapes: list[Shape] = []
    for s in (-1.0, 1.0):
        w = h.wide
        outer = [
            (s * (w - 1.5), 6.0),
            (s * (w + 3.5), -12.0),
            (s * (w + 4.0), -28.0),
            (s * (0.95 * w + 2.0), -43.0),
            (s * 0.86 * w, -53.0),
        ]
        inner = [
            (s * 0.84 * w, -46.0),
            (s * 0.85 * w, -34.0),
            (s * 0.93 * w, -20.0),
            (s * (w - 5.0), -6.0),
            (s * (w - 3.5), 5.0),
        ]
        shapes.append((h.silhouette(outer), h.on_face(inner)))
    return shapes


def _short(h: _Head) -> list[Shape]:
    fringe = h.hair_line(-48.0, -38.0, 2.0)
    p = h.part
    tufts = [
        (0.46 * h.wide, -46.0),
        (0.22 * h.wide, -50.0),
        (0.05 * h.wide, -44.0),
        (-0.16 * h.wide, -50.0),
        (-0.36 * h.wide, -45.0),
    ]
    tufts = [(p * x, y - h.line) for x, y in tufts]
    fringe[4:7] = tufts if p > 0 else tufts[::-1]
    return [(h.silhouette(h.crown(3.5, 9.0, 4.0)), h.on_face(fringe))]


def _side_part(h: _Head) -> list[Shape]:
    w, up, p = h.wide, -h.line, h.part
    line = [(w - 1.0, 6.0), (w - 5.0, -12.0), (0.86 * w, -32.0 + up), (0.66 * w, -44.0 + up), (0.40 * w, -58.0 + up),
            (0.10 * w, -52.0 + up), (-0.30 * w, -45.0 + up), (-0.66 * w, -39.0 + up), (-0.88 * w, -30.0 + up), (-w + 5.0, -12.0), (-w + 1.0, 6.0)]  # fmt: skip
    crown = [(x, y - (5.0 * h.volume if x < 0.0 and y < -50.0 else 0.0)) for x, y in h.crown(3.0, 9.0, 6.0)]
    if p < 0:
        line, crown = [(-x, y) for x, y in reversed(line)], [(-x, y) for x, y in reversed(crown)]
    return [(h.silhouette(crown), h.on_face(line))]


def _quiff(h: _Head) -> list[Shape]:
    w, p, top = h.wide, h.part, 20.0 * h.volume
    crown = [(-w - 0.5, 2.0), (-w - 1.5, -22.0), (-0.95 * w, -52.0), (-0.78 * w, -78.0 - 0.5 * top), (-0.30 * w, -82.0 - top),
             (0.30 * w, -86.0 - 0.85 * top), (0.74 * w, -74.0 - 0.45 * top), (0.95 * w, -50.0), (w + 1.5, -22.0), (w + 0.5, 2.0)]  # fmt: skip
    if p < 0:
        crown = [(-x, y) for x, y in reversed(crown)]
    return [(h.silhouette(crown), h.on_face(h.hair_line(-54.0, -40.0, 0.0)))]


def _pixie(h: _Head) -> list[Shape]:
    w, up, p = h.wide, -h.line, h.part
    line = [(w - 2.0, 16.0), (w - 7.0, 2.0), (0.84 * w, -18.0), (0.66 * w, -38.0 + up), (0.44 * w, -52.0 + up), (0.16 * w, -44.0 + up),
            (-0.22 * w, -36.0 + 0.6 * up), (-0.56 * w, -30.0 + 0.4 * up), (-0.84 * w, -16.0), (-w + 7.0, 4.0), (-w + 2.0, 18.0)]  # fmt: skip
    crown = h.crown(4.5, 10.0, 17.0)
    if p < 0:
        line = [(-x, y) for x, y in reversed(line)]
    return [(h.silhouette(crown), h.on_face(line))]


def _fringe(h: _Head) -> list[Shape]:
    w = h.wide
    right = [(w - 9.0, 54.0), (w - 9.0, 24.0), (0.84 * w, -10.0), (0.77 * w, -35.0), (0.40 * w, -39.0)]
    line = [*right, (0.0, -40.0), *((-x, y) for x, y in reversed(right))]
    crown = h.crown(8.0, 9.0, 26.0)
    crown = [(-w - 3.0, 56.0), *crown, (w + 3.0, 56.0)]
    return [(h.silhouette(crown), h.on_face(line))]


def _curtains(h: _Head, low: float, flare: float, fixed: bool) -> list[Shape]:
    """Hair parted over the forehead that falls beside the face to head y `low`."""
    w, up, shapes = h.wide, -h.line, []
    parting = 0.26 * w * h.part
    for s in (-1.0, 1.0):
        outer = [(parting, -83.0 - 8.0 * h.volume), (s * 0.58 * w + 0.3 * parting, -77.0 - 7.0 * h.volume), (s * (0.94 * w + 4.0), -52.0 - 4.0 * h.volume),
                 (s * (w + 8.0), -16.0), (s * (w + 9.0 + 0.5 * flare), 22.0), (s * (w + 7.0 + flare), 0.45 * low + 30.0), (s * (w + 1.0 + flare), low)]  # fmt: skip
        inner = [(s * (w - 3.0 + flare), low + 1.0), (s * (w - 10.0 + 0.7 * flare), 0.86 * low), (s * (w - 7.0), 0.45 * low + 18.0), (s * (w - 5.0), 14.0), (s * (0.84 * w), -14.0),
                 (s * 0.66 * w + 0.1 * parting, -38.0 + 0.6 * up), (s * 0.30 * w + 0.6 * parting, -54.0 + up), (parting, -63.0 + up)]  # fmt: skip
        if fixed:
            shapes.append(
                (
                    h.pose.hang(np.array(outer), FRONT_DEPTH, 40.0, 120.0),
                    h.pose.hang(np.array(inner), 10.0, 40.0, 120.0),
                )
            )
        else:
            shapes.append((h.silhouette(outer), h.on_face(inner)))
    return shapes


def _bob(h: _Head) -> list[Shape]:
    return _curtains(h, 58.0, 2.0, fixed=False)


def _long(h: _Head) -> list[Shape]:
    return _curtains(h, 152.0, 3.0, fixed=True)


def _long_wavy(h: _Head) -> list[Shape]:
    return _curtains(h, 116.0, 11.0, fixed=True)


def _slick(h: _Head) -> list[Shape]:
    return [(h.silhouette(h.crown(1.5, 4.0, 2.0)), h.on_face(h.hair_line(-55.0, -42.0, 0.0)))]


def _lobes(h: _Head, grow: float, low: float, count: int, bulge: float, depth: float) -> list[Points]:
    """The outline of a mass of curls from the left of the picture over the top to the right: round lobes, sharp notches.

    `grow` is how far it stands off the skull, `low` the head y where it ends, `bulge` the height of a lobe.
    """
    wide, tall, centre = h.wide + grow, 58.0 + grow, -26.0
    start = math.asin(min(0.95, (low - centre) / (tall + 20.0)))
    chains = []
    for i in range(count):
        arc = []
        for k in range(5):
            angle = math.pi + start - (math.pi + 2.0 * start) * (i + k / 4.0) / count
            out = bulge * (0.0, 0.78, 1.0, 0.78, 0.0)[k]
            x, y = math.cos(angle), -math.sin(angle)
            arc.append((x * (wide + out), centre + y * (tall + out + (20.0 if y > 0.0 else 0.0))))
        chains.append(h.silhouette(arc, depth))
    return chains


def _curly(h: _Head) -> list[Shape]:
    w, up = h.wide, -h.line
    fringe = [(w - 5.0, 2.0), (0.90 * w, -20.0), (0.70 * w, -36.0 + up), (0.40 * w, -43.0 + up), (0.10 * w, -46.0 + up)]
    fringe += [(-0.22 * w, -45.0 + up), (-0.52 * w, -41.0 + up), (-0.80 * w, -32.0 + 0.6 * up), (-w + 5.0, 2.0)]
    chains = []
    for (x1, y1), (x2, y2) in zip(fringe[:-1], fringe[1:], strict=True):
        middle = (0.5 * (x1 + x2), 0.5 * (y1 + y2) + 5.0)
        quarter = [(0.5 * (a + middle[0]), 0.5 * (b + middle[1]) + 2.4) for a, b in ((x1, y1), (x2, y2))]
        chains.append(h.on_face([(x1, y1), quarter[0], middle, quarter[1], (x2, y2)]))
    return [(*_lobes(h, 4.0 + 6.0 * h.volume, 6.0, 11, 6.0, FRONT_DEPTH), *chains)]


def _afro(h: _Head) -> list[Shape]:
    line = h.on_face(h.hair_line(-50.0, -36.0, 4.0))
    return [(*_lobes(h, 10.0 + 14.0 * h.volume, 4.0, 20, 2.4, FRONT_DEPTH), line)]


def _headscarf(h: _Head) -> list[Shape]:
    w = h.wide
    crown = h.crown(8.0, 7.0, 16.0)
    right = [(0.94 * w, 16.0), (0.90 * w, -10.0), (0.76 * w, -36.0), (0.42 * w, -53.0)]
    return [(h.silhouette(crown), h.on_face([*right, (0.0, -58.0), *((-x, y) for x, y in reversed(right))]))]


def _beanie(h: _Head) -> list[Shape]:
    w = h.wide
    crown = h.crown(3.0, 14.0, -30.0)
    crown[0], crown[-1] = (-w - 3.0, -34.0), (w + 3.0, -34.0)
    return [
        (
            h.silhouette(crown),
            h.on_face([(w + 1.0, -34.0), (0.5 * w, -42.0), (0.0, -44.0), (-0.5 * w, -42.0), (-w - 1.0, -34.0)], 0.0),
        )
    ]


FRONTS: dict[str, Callable[[_Head], list[Shape]]] = {
    "bald": lambda h: [],
    "receding": _receding,
    "buzz": _buzz,
    "short": _short,
    "side_part": _side_part,
    "quiff": _quiff,
    "pixie": _pixie,
    "fringe_bob": _fringe,
    "bob": _bob,
    "long_straight": _long,
    "long_wavy": _long_wavy,
    "curly": _curly,
    "afro": _afro,
    "top_bun": _slick,
    "space_buns": _slick,
    "ponytail": _slick,
    "headscarf": _headscarf,
    "beanie": _beanie,
}


def _head(identity: Identity, pose: Pose, face: Face) -> _Head:
    return _Head(half_width(identity), identity.hair_volume, identity.hair_line, identity.hair_part, pose, face)


def front_shapes(identity: Identity, pose: Pose, face: Face) -> list[Shape]:
    """Closed shapes of the hair in front of the head, in picture coordinates."""
    return FRONTS[identity.hair_style](_head(identity, pose, face))


def draw_back(canvas: Canvas, identity: Identity, pose: Pose, face: Face, tones: Tones) -> None:
    """Hair behind the neck and shoulders."""
    h = _head(identity, pose, face)
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
        canvas.fill((*_lobes(h, 6.0 + 7.0 * v, 40.0, 13, 6.0, BACK_DEPTH),), tones.dark)
    elif style == "afro":
        canvas.fill((*_lobes(h, 11.0 + 14.0 * v, 36.0, 22, 2.4, BACK_DEPTH),), tones.dark)
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
        tail = np.array([(s * 0.30 * w, -78.0), (s * 0.78 * w, -84.0), (s * (w + 14.0), -58.0), (s * (w + 20.0), -10.0), (s * (w + 24.0), 40.0), (s * (w + 8.0), 92.0),
                         (s * (w + 2.0), 50.0), (s * (w - 4.0), 0.0), (s * 0.7 * w, -50.0)])  # fmt: skip
        canvas.fill(pose.hang(tail, BACK_DEPTH, 20.0, 110.0), tones.dark)
        inner = tail * np.array([0.97, 0.92]) + np.array([s * 1.0, -2.0])
        canvas.fill(pose.hang(inner, BACK_DEPTH, 20.0, 110.0), tones.base, 0.75)


def draw_drape(canvas: Canvas, identity: Identity, pose: Pose, face: Face) -> None:
    """The part of a headscarf below the chin; the scarf's colour is the outfit's accent."""
    cloth = CLOTH_COLOURS[identity.outfit_accent]
    w = half_width(identity)
    jaw = face.outline[3:14] * np.array([0.94, 0.97])
    inside = pose.face(jaw, 3.0)
    outside = pose.hang(np.array([(-w - 8.0, 10.0), (-w - 6.0, 50.0), (-0.86 * w, 84.0), (-0.96 * w, 116.0), (0.0, 142.0), (0.96 * w, 116.0), (0.86 * w, 84.0), (w + 6.0, 50.0), (w + 8.0, 10.0)]),
                        FRONT_DEPTH, 50.0, 100.0)  # fmt: skip
    canvas.linear(
        (outside, inside), (80.0, 150.0), (180.0, 240.0), [(0.0, cloth, 1.0), (1.0, shade(cloth, -0.20), 1.0)]
    )
    for dx, dy in ((-20.0, 96.0), (4.0, 104.0)):
        fold = np.array([(dx - 30.0, dy - 22.0), (dx, dy), (dx + 34.0, dy - 14.0)])
        canvas.stroke(pose.hang(fold, FRONT_DEPTH, 50.0, 100.0), [0.1, 1.3, 0.1], shade(cloth, -0.30), 0.7)


def draw_cast_shadow(canvas: Canvas, skin: Skin, shapes: list[Shape]) -> None:
    """The shadow the hair throws on the forehead and cheeks."""
    down = np.array([1.0, 5.0])
    for shape in shapes:
        moved = shape + down if isinstance(shape, np.ndarray) else tuple(chain + down for chain in shape)
        canvas.fill(moved, skin.shadow, 0.55, canvas.face)


def draw_front(canvas: Canvas, identity: Identity, pose: Pose, face: Face, tones: Tones, shapes: list[Shape]) -> None:
    style = identity.hair_style
    if style in ("headscarf", "beanie"):
        _draw_headwear(canvas, identity, pose, shapes)
        return
    alpha = 0.78 if style == "buzz" else 1.0
    for shape in shapes:
        canvas.linear(shape, (88.0, 24.0), (176.0, 150.0), [(0.0, mix(tones.base, tones.light, 0.55), alpha), (0.42, tones.base, alpha), (1.0, mix(tones.base, tones.dark, 0.75), alpha)])  # fmt: skip
    h = _head(identity, pose, face)
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
        for start, end, bend in ((-0.3, -0.52, -6.0), (0.18, 0.40, 6.0), (0.42, 0.74, 9.0)):
            strand = h.silhouette(
                [(p * start * w, -77.0 - 4.0 * v), (p * (0.5 * (start + end) * w + bend), -71.0), (p * end * w, -60.0)],
                6.0,
            )
            canvas.stroke(strand, [0.2, 1.0, 0.1], tones.dark, 0.55)


def _draw_curls(canvas: Canvas, h: _Head, tones: Tones, grow: float) -> None:
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


def _draw_headwear(canvas: Canvas, identity: Identity, pose: Pose, shapes: list[Shape]) -> None:
    cloth = CLOTH_COLOURS[identity.outfit_accent]
    dark, light = shade(cloth, -0.24), shade(cloth, 0.20)
    w = half_width(identity)
    for shape in shapes:
        canvas.linear(shape, (88.0, 24.0), (176.0, 150.0), [(0.0, light, 1.0), (0.45, cloth, 1.0), (1.0, dark, 1.0)])
    if identity.hair_style == "beanie":
        rim = np.array([(-w - 2.0, -36.0), (-0.52 * w, -47.0), (0.0, -50.0), (0.52 * w, -47.0), (w + 2.0, -36.0)])
        line = pose.layer(rim, 10.0)
        canvas.stroke(line, [9.0, 10.0, 10.5, 10.0, 9.0], light)
        canvas.stroke(line + np.array([0.0, 9.0]), [0.4, 1.0, 1.0, 1.0, 0.4], dark, 0.7)
        for k in range(-4, 5):
            x = 0.215 * k * w
            y = -50.0 + 13.0 * (k / 4.6) * (k / 4.6)
            canvas.stroke(pose.layer(np.array([(x, y - 8.0), (x, y + 8.0)]), 10.0), [0.55, 0.55], dark, 0.45)
    else:
        for start, end in (((-0.2 * w, -84.0), (-0.86 * w, -30.0)), ((0.16 * w, -85.0), (0.84 * w, -40.0))):
            middle = (0.62 * (start[0] + end[0]), 0.5 * (start[1] + end[1]) - 8.0)
            canvas.stroke(pose.layer(np.array([start, middle, end]), 8.0), [0.2, 1.2, 0.1], dark, 0.6)
