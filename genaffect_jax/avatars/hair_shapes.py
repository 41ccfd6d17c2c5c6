"""The outlines of the hair in front of the head, for every style."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from genaffect_jax.avatars.canvas import Points
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.avatars.rig import half_width

Shape = Points | tuple[Points, ...]
FRONT_DEPTH = 3.0  # of the silhouette of the hair


@dataclass(frozen=True)
class Head:
    """What a style needs to know: sizes of the skull, the pose, the parting."""

    wide: float
    volume: float
    line: float
    part: float
    pose: Pose

    def silhouette(self, points: list[tuple[float, float]], depth: float = FRONT_DEPTH) -> Points:
        return self.pose.layer(np.array(points), depth)

    def on_face(self, points: list[tuple[float, float]], lift: float = 3.0) -> Points:
        return self.pose.face(np.array(points), lift)

    def crown(self, side: float, top: float, low: float) -> list[tuple[float, float]]:
        """The outside of the hair from the left of the image over the top to the right.

        `side` and `top` are how far it stands off the skull, `low` the head y where it ends.
        """
        wide, top = self.wide + side, top * self.volume
        right = [(0.56 * wide, -75.0 - 0.9 * top), (0.90 * wide, -52.0 - 0.5 * top), (wide, -20.0), (wide - 1.0, low)]
        return [*((-x, y) for x, y in reversed(right)), (0.0, -82.0 - top), *right]

    def hair_line(self, middle: float, corner: float, low: float) -> list[tuple[float, float]]:
        """The edge on the forehead from the right of the image to the left; `low` where it leaves the head."""
        w, up = self.wide, -self.line
        right = [
            (w - 0.5, low),
            (w - 5.5, 0.5 * low - 12.0),
            (0.86 * w, corner + 6.0 + up),
            (0.62 * w, corner - 8.0 + up),
        ]
        right.append((0.30 * w, middle - 1.0 + up))
        return [*right, (0.0, middle + up), *((-x, y) for x, y in reversed(right))]


# --- parts in front of the head: each returns closed shapes in image coordinates ---------------------------------


def _buzz(h: Head) -> list[Shape]:
    return [(h.silhouette(h.crown(0.6, 1.5, -8.0)), h.on_face(h.hair_line(-52.0, -40.0, -6.0)))]


def _receding(h: Head) -> list[Shape]:
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


def _short(h: Head) -> list[Shape]:
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


def _side_part(h: Head) -> list[Shape]:
    w, up, p = h.wide, -h.line, h.part
    line = [
        (w - 1.0, 6.0),
        (w - 5.0, -12.0),
        (0.86 * w, -32.0 + up),
        (0.66 * w, -44.0 + up),
        (0.40 * w, -58.0 + up),
        (0.10 * w, -52.0 + up),
        (-0.30 * w, -45.0 + up),
        (-0.66 * w, -39.0 + up),
        (-0.88 * w, -30.0 + up),
        (-w + 5.0, -12.0),
        (-w + 1.0, 6.0),
    ]
    crown = [(x, y - (5.0 * h.volume if x < 0.0 and y < -50.0 else 0.0)) for x, y in h.crown(3.0, 9.0, 6.0)]
    if p < 0:
        line, crown = [(-x, y) for x, y in reversed(line)], [(-x, y) for x, y in reversed(crown)]
    return [(h.silhouette(crown), h.on_face(line))]


def _quiff(h: Head) -> list[Shape]:
    w, p, top = h.wide, h.part, 20.0 * h.volume
    crown = [
        (-w - 0.5, 2.0),
        (-w - 1.5, -22.0),
        (-0.95 * w, -52.0),
        (-0.78 * w, -78.0 - 0.5 * top),
        (-0.30 * w, -82.0 - top),
        (0.30 * w, -86.0 - 0.85 * top),
        (0.74 * w, -74.0 - 0.45 * top),
        (0.95 * w, -50.0),
        (w + 1.5, -22.0),
        (w + 0.5, 2.0),
    ]
    if p < 0:
        crown = [(-x, y) for x, y in reversed(crown)]
    return [(h.silhouette(crown), h.on_face(h.hair_line(-54.0, -40.0, 0.0)))]


def _pixie(h: Head) -> list[Shape]:
    w, up, p = h.wide, -h.line, h.part
    line = [
        (w - 2.0, 16.0),
        (w - 7.0, 2.0),
        (0.84 * w, -18.0),
        (0.66 * w, -38.0 + up),
        (0.44 * w, -52.0 + up),
        (0.16 * w, -44.0 + up),
        (-0.22 * w, -36.0 + 0.6 * up),
        (-0.56 * w, -30.0 + 0.4 * up),
        (-0.84 * w, -16.0),
        (-w + 7.0, 4.0),
        (-w + 2.0, 18.0),
    ]
    crown = h.crown(4.5, 10.0, 17.0)
    if p < 0:
        line = [(-x, y) for x, y in reversed(line)]
    return [(h.silhouette(crown), h.on_face(line))]


def _fringe(h: Head) -> list[Shape]:
    w = h.wide
    right = [(w - 9.0, 54.0), (w - 9.0, 24.0), (0.84 * w, -10.0), (0.77 * w, -35.0), (0.40 * w, -39.0)]
    line = [*right, (0.0, -40.0), *((-x, y) for x, y in reversed(right))]
    crown = h.crown(8.0, 9.0, 26.0)
    crown = [(-w - 3.0, 56.0), *crown, (w + 3.0, 56.0)]
    return [(h.silhouette(crown), h.on_face(line))]


def _curtains(h: Head, low: float, flare: float, fixed: bool) -> list[Shape]:
    """Hair parted over the forehead that falls beside the face to head y `low`."""
    w, up = h.wide, -h.line
    shapes: list[Shape] = []
    parting = 0.26 * w * h.part
    for s in (-1.0, 1.0):
        outer = [
            (parting, -83.0 - 8.0 * h.volume),
            (s * 0.58 * w + 0.3 * parting, -77.0 - 7.0 * h.volume),
            (s * (0.94 * w + 4.0), -52.0 - 4.0 * h.volume),
            (s * (w + 8.0), -16.0),
            (s * (w + 9.0 + 0.5 * flare), 22.0),
            (s * (w + 7.0 + flare), 0.45 * low + 30.0),
            (s * (w + 1.0 + flare), low),
        ]
        inner = [
            (s * (w - 3.0 + flare), low + 1.0),
            (s * (w - 10.0 + 0.7 * flare), 0.86 * low),
            (s * (w - 7.0), 0.45 * low + 18.0),
            (s * (w - 5.0), 14.0),
            (s * (0.84 * w), -14.0),
            (s * 0.66 * w + 0.1 * parting, -38.0 + 0.6 * up),
            (s * 0.30 * w + 0.6 * parting, -54.0 + up),
            (parting, -63.0 + up),
        ]
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


def _bob(h: Head) -> list[Shape]:
    return _curtains(h, 58.0, 2.0, fixed=False)


def _long(h: Head) -> list[Shape]:
    return _curtains(h, 152.0, 3.0, fixed=True)


def _long_wavy(h: Head) -> list[Shape]:
    return _curtains(h, 116.0, 11.0, fixed=True)


def _slick(h: Head) -> list[Shape]:
    return [(h.silhouette(h.crown(1.5, 4.0, 2.0)), h.on_face(h.hair_line(-55.0, -42.0, 0.0)))]


def lobes(h: Head, grow: float, low: float, count: int, bulge: float, depth: float) -> list[Points]:
    """The outline of a mass of curls from the left of the image over the top to the right: round lobes and notches.

    `grow` is how far it stands off the skull, `low` the head y where it ends, `bulge` the height of a lobe.
    """
    wide, tall, centre = h.wide + grow, 58.0 + grow, -26.0
    start = math.asin(min(0.95, (low - centre) / tall))
    chains = []
    for i in range(count):
        arc = []
        for k in range(5):
            angle = math.pi + start - (math.pi + 2.0 * start) * (i + k / 4.0) / count
            out = bulge * (0.0, 0.78, 1.0, 0.78, 0.0)[k]
            x, y = math.cos(angle), -math.sin(angle)
            arc.append((x * (wide + out), centre + y * (tall + out)))
        chains.append(h.silhouette(arc, depth))
    return chains


def _curly(h: Head) -> list[Shape]:
    w, up = h.wide, -h.line
    fringe = [(w - 5.0, 2.0), (0.90 * w, -20.0), (0.70 * w, -36.0 + up), (0.40 * w, -43.0 + up), (0.10 * w, -46.0 + up)]
    fringe += [(-0.22 * w, -45.0 + up), (-0.52 * w, -41.0 + up), (-0.80 * w, -32.0 + 0.6 * up), (-w + 5.0, 2.0)]
    chains = []
    for (x1, y1), (x2, y2) in pairwise(fringe):
        middle = (0.5 * (x1 + x2), 0.5 * (y1 + y2) + 5.0)
        quarter = [(0.5 * (a + middle[0]), 0.5 * (b + middle[1]) + 2.4) for a, b in ((x1, y1), (x2, y2))]
        chains.append(h.on_face([(x1, y1), quarter[0], middle, quarter[1], (x2, y2)]))
    return [(*lobes(h, 4.0 + 6.0 * h.volume, 6.0, 11, 6.0, FRONT_DEPTH), *chains)]


def _afro(h: Head) -> list[Shape]:
    line = h.on_face(h.hair_line(-50.0, -36.0, 8.0))
    return [(*lobes(h, 10.0 + 14.0 * h.volume, 20.0, 21, 2.4, FRONT_DEPTH), line)]


def _headscarf(h: Head) -> list[Shape]:
    w = h.wide
    crown = h.crown(8.0, 7.0, 16.0)
    right = [(0.94 * w, 16.0), (0.90 * w, -10.0), (0.76 * w, -36.0), (0.42 * w, -53.0)]
    return [(h.silhouette(crown), h.on_face([*right, (0.0, -58.0), *((-x, y) for x, y in reversed(right))]))]


def _beanie(h: Head) -> list[Shape]:
    w = h.wide
    crown = h.crown(3.0, 14.0, -30.0)
    crown[:2], crown[-2:] = [(-w - 2.0, -34.0), (-w - 1.0, -40.0)], [(w + 1.0, -40.0), (w + 2.0, -34.0)]
    return [
        (
            h.silhouette(crown),
            h.on_face([(w + 1.0, -34.0), (0.5 * w, -42.0), (0.0, -44.0), (-0.5 * w, -42.0), (-w - 1.0, -34.0)], 0.0),
        )
    ]


FRONTS: dict[str, Callable[[Head], list[Shape]]] = {
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


def head_of(identity: Identity, pose: Pose) -> Head:
    return Head(half_width(identity), identity.hair_volume, identity.hair_line, identity.hair_part, pose)


def front_shapes(identity: Identity, pose: Pose) -> list[Shape]:
    """Closed shapes of the hair in front of the head, in image coordinates."""
    return FRONTS[identity.hair_style](head_of(identity, pose))
