"""Where the names of points go: beside each point, off the other points and names as far as there is room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Mean width of a letter in units of its size; a label may come out a little narrower.
_LETTER = 0.56
# Half the side of the square that a point covers, in pixels.
_POINT = 5.0
_RADII = (9.0, 20.0, 34.0, 52.0)
_ANGLES = tuple(math.radians(a) for a in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90))


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True)
class Place:
    """A label's place beside its point."""

    dx: float
    dy: float
    """From the point to the label's near end, at half its height, in pixels."""
    align: str
    """Which part of the label is there: `left`, `right` or `center`."""
    far: bool
    """Whether a line should lead to the point."""


def place_labels(
    points: Sequence[tuple[float, ...]], names: Sequence[str], size: float, frame: Box, lines: Sequence[Box] = ()
) -> list[Place | None]:
    """Places labels one after the other, each where it covers the least of what is there already and of the outside.

    Args:
        points: x and y of each, in pixels; points that are not finite get no label.
        names: of the points; an empty one gets no label.
        size: of the letters, in pixels.
        frame: where the labels should be.
        lines: what else they should not cover.

    Returns:
        A place for each point; None without a label.
    """
    taken = [Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points if math.isfinite(x + y)]
    taken += lines
    places: list[Place | None] = []
    for (x, y), name in zip(points, names, strict=True):
        if not name or not math.isfinite(x + y):
            places.append(None)
            continue
        options = [(place, _box(place, x, y, name, size)) for place in _options()]
        # The first of equally good places: the nearest, at the right if there is room.
        place, box = min(options, key=lambda option: _cost(option[1], taken, frame))
        places.append(place)
        taken.append(box)
    return places


def _options() -> Iterator[Place]:
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            align = "center" if abs(dx) < 1 else "left" if dx > 0 else "right"
            yield Place(dx, dy, align, radius > _RADII[1])


def _box(place: Place, x: float, y: float, name: str, size: float) -> Box:
    wide = _LETTER * size * len(name)
    left = x + place.dx - {"left": 0.0, "center": wide / 2, "right": wide}[place.align]
    return Box(left, y + place.dy - 0.6 * size, left + wide, y + place.dy + 0.6 * size)


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    outside = box.area - box.overlap(frame)
    return round(sum(box.overlap(other) for other in taken) + outside, 3)
