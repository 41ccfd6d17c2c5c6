"""A small vector canvas over celiagg: smooth shapes from few control points, gradients, clipping.

All coordinates are design units: the picture is 256 x 256 units whatever its size in pixels. Before anything reaches
the rasteriser the control points are rounded to 1/256 pixel, and curves are flattened with dyadic weights, so every
intermediate sum is exact in float64 and the polygons are the same bits on every machine, whatever order or fused
instruction evaluates them.

celiagg 2.1 widens every filled shape by half a pixel on all sides (it passes fills through a contour generator of
width 1 that no setting switches off). The art is tuned to that at 256 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import celiagg
import numpy as np
from jaxtyping import Float, UInt8

DESIGN = 256.0
STEPS = 8  # polygon edges per curve span; a power of two keeps the spline weights dyadic
GRID = 256.0  # coordinates are multiples of 1/GRID pixel, the rasteriser's own sub-pixel resolution

Points = Float[np.ndarray, "N 2"]
Colour = tuple[int, int, int]
Stop = tuple[float, Colour, float]

_IDENTITY = celiagg.Transform()
_PLAIN = celiagg.GraphicsState(drawing_mode=celiagg.DrawingMode.DrawFill)
_D = 0.70710678
_UNIT_CIRCLE = np.array([(1.0, 0.0), (_D, _D), (0.0, 1.0), (-_D, _D), (-1.0, 0.0), (-_D, -_D), (0.0, -1.0), (_D, -_D)])
_WHITE = celiagg.SolidPaint(1.0, 1.0, 1.0, 1.0)


def _span_weights(t: float) -> tuple[float, float, float, float]:
    """Uniform Catmull-Rom weights of the four points around a span (Catmull & Rom 1974, tension 1/2)."""
    t2, t3 = t * t, t * t * t
    return (-t3 + 2 * t2 - t) / 2, (3 * t3 - 5 * t2 + 2) / 2, (-3 * t3 + 4 * t2 + t) / 2, (t3 - t2) / 2


@cache
def _closed_weights(n: int) -> Float[np.ndarray, "M N"]:
    weights = np.zeros((n * STEPS, n))
    for i in range(n):
        for k in range(STEPS):
            for offset, w in enumerate(_span_weights(k / STEPS), start=-1):
                weights[i * STEPS + k, (i + offset) % n] += w
    return weights / GRID


@cache
def _open_weights(n: int) -> Float[np.ndarray, "M N"]:
    """As `_closed_weights` for an open chain; the missing end neighbours are the reflected second points."""
    weights = np.zeros(((n - 1) * STEPS + 1, n))
    for row in range(len(weights)):
        i, k = min(row // STEPS, n - 2), row - STEPS * min(row // STEPS, n - 2)
        for offset, w in enumerate(_span_weights(k / STEPS), start=-1):
            j = i + offset
            if j < 0:
                weights[row, 0] += 2 * w
                weights[row, 1] -= w
            elif j >= n:
                weights[row, n - 1] += 2 * w
                weights[row, n - 2] -= w
            else:
                weights[row, j] += w
    return weights


def ellipse(cx: float, cy: float, rx: float, ry: float) -> Points:
    """Eight control points of a closed smooth curve that follows an ellipse to about 1 % of its radius."""
    return _UNIT_CIRCLE * np.array((rx, ry)) + np.array((cx, cy))


@cache
def _chain_weights(lengths: tuple[int, ...]) -> Float[np.ndarray, "M N"]:
    """Flattens several chains, stacked in one array of control points, into one polygon."""
    blocks = [np.eye(n) if n < 3 else _open_weights(n) for n in lengths]
    weights = np.zeros((sum(len(b) for b in blocks), sum(lengths)))
    row = column = 0
    for block in blocks:
        weights[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return weights / GRID


@cache
def _ribbon_weights(n: int) -> Float[np.ndarray, "M N"]:
    """Flattens a centre line and its half-width normals, stacked, into the outline centre + normal, centre - normal."""
    edge = np.eye(n) if n < 3 else _open_weights(n)
    return np.block([[edge, edge], [edge[::-1], -edge[::-1]]]) / GRID


@cache
def _tangent_weights(n: int) -> Float[np.ndarray, "N N"]:
    """Differences of the two neighbours of each control point, one-sided at the ends."""
    weights = np.zeros((n, n))
    for i in range(n):
        weights[i, min(i + 1, n - 1)] += 1.0
        weights[i, max(i - 1, 0)] -= 1.0
    return weights


_TURN = np.array([(0.0, 1.0), (-1.0, 0.0)])  # right-multiplied: a quarter turn of a row vector
_SUM = np.ones(2)


def _normals(centre: Points, half_width: np.ndarray) -> Points:
    """A quarter turn from the direction of the line at each control point, `half_width` long."""
    normal = _tangent_weights(len(centre)) @ centre @ _TURN
    return normal * (half_width / np.sqrt((normal * normal) @ _SUM + 1e-12))[:, None]


class Stencil:
    """A clipping region: shapes drawn with it appear only where it was filled."""

    def __init__(self, size: int):
        self._coverage = np.zeros((size, size), np.uint8)
        self._canvas = celiagg.CanvasG8(self._coverage)
        image = celiagg.Image(self._coverage, celiagg.PixelFormat.Gray8)
        self.state = celiagg.GraphicsState(drawing_mode=celiagg.DrawingMode.DrawFill, stencil=image)

    def replace(self, path: celiagg.Path) -> None:
        self._canvas.clear(0.0, 0.0, 0.0, 1.0)
        self._canvas.draw_shape(path, _IDENTITY, _PLAIN, fill=_WHITE)


class Canvas:
    """A `size` x `size` RGB picture addressed in design units.

    Every drawing call takes a shape as one or more *chains* of control points: each chain becomes a smooth open curve
    and the chains are joined by straight edges into one polygon. A single array is a smooth closed curve.
    """

    def __init__(self, size: int):
        self.scale = size / DESIGN
        self._to_grid = self.scale * GRID
        self.pixels: UInt8[np.ndarray, "H W 3"] = np.empty((size, size, 3), np.uint8)
        self._canvas = celiagg.CanvasRGB24(self.pixels)
        self.face = Stencil(size)
        self.scratch = Stencil(size)

    def backdrop(self, start: Colour, end: Colour) -> None:
        """Covers the picture with a gradient from the top left corner to the bottom right one.

        Row y is the same ramp of colours begun y places later, so a strided copy does it at the cost of a clear.
        """
        size = len(self.pixels)
        last = 2 * size - 2
        place = np.arange(last + 1)[:, None]
        ramp = (np.array(start) * (last - place) + np.array(end) * place + last // 2) // last
        rows = np.lib.stride_tricks.sliding_window_view(ramp.astype(np.uint8), size, axis=0)
        self.pixels[:] = rows.transpose(0, 2, 1)

    def path(self, shape: Points | Sequence[Points]) -> celiagg.Path:
        if isinstance(shape, np.ndarray):
            points, weights = shape, _closed_weights(len(shape))
        else:
            points, weights = np.concatenate(shape), _chain_weights(tuple([len(chain) for chain in shape]))
        return self._polygon(points, weights)

    def _polygon(self, points: Points, weights: Float[np.ndarray, "M N"]) -> celiagg.Path:
        path = celiagg.Path()
        path.lines(weights @ np.rint(points * self._to_grid))
        path.close()
        return path

    def clip(self, shape: Points | Sequence[Points], stencil: Stencil) -> Stencil:
        """Makes `stencil` the region inside `shape` and returns it."""
        stencil.replace(self.path(shape))
        return stencil

    def fill(
        self, shape: Points | Sequence[Points], colour: Colour, alpha: float = 1.0, clip: Stencil | None = None
    ) -> None:
        """Fills with one colour; `alpha` in [0, 1] is rounded to 1/255."""
        self._paint(self.path(shape), colour, alpha, clip)

    def stroke(
        self,
        centre: Points,
        half_width: Sequence[float] | np.ndarray,
        colour: Colour,
        alpha: float = 1.0,
        clip: Stencil | None = None,
    ) -> None:
        """A tapered line through `centre`, `half_width` design units to each side at each control point."""
        points = np.concatenate([centre, _normals(centre, np.asarray(half_width, np.float64))])
        self._paint(self._polygon(points, _ribbon_weights(len(centre))), colour, alpha, clip)

    def strokes(
        self,
        centres: Float[np.ndarray, "K N 2"],
        half_width: Sequence[float],
        colour: Colour,
        alpha: float,
        clip: Stencil | None = None,
    ) -> None:
        """Several tapered lines of one colour and one taper in one pass."""
        widths, path = np.asarray(half_width, np.float64), celiagg.Path()
        for centre in centres:
            points = np.concatenate([centre, _normals(centre, widths)])
            path.add_path(self._polygon(points, _ribbon_weights(len(centre))))
        self._paint(path, colour, alpha, clip)

    def scatter(
        self, shapes: Sequence[Points | Sequence[Points]], colour: Colour, alpha: float, clip: Stencil | None = None
    ) -> None:
        """Fills several shapes of one colour in one pass; where they overlap they do not add up."""
        path = celiagg.Path()
        for shape in shapes:
            path.add_path(self.path(shape))
        self._paint(path, colour, alpha, clip)

    def _paint(self, path: celiagg.Path, colour: Colour, alpha: float, clip: Stencil | None) -> None:
        r, g, b = colour
        paint = celiagg.SolidPaint(r / 255.0, g / 255.0, b / 255.0, round(255.0 * alpha) / 255.0)
        self._canvas.draw_shape(path, _IDENTITY, _PLAIN if clip is None else clip.state, fill=paint)

    def ring(self, outer: Points, inner: Points, colour: Colour, alpha: float = 1.0) -> None:
        """Fills between two smooth closed curves; `inner` lies inside `outer` and both turn the same way."""
        loops = []
        for points, direction in ((outer, 1), (inner, -1)):
            loop = _closed_weights(len(points)) @ np.rint(points * self._to_grid)
            loops.append(np.concatenate([loop, loop[:1]])[::direction])
        path = celiagg.Path()
        path.lines(np.concatenate(loops))  # the seam runs both ways and cancels exactly
        path.close()
        self._paint(path, colour, alpha, None)

    def linear(
        self,
        shape: Points | Sequence[Points],
        start: tuple[float, float],
        end: tuple[float, float],
        stops: Sequence[Stop],
        clip: Stencil | None = None,
    ) -> None:
        """Fills with a gradient along start -> end; stops are (offset in [0, 1], colour, alpha)."""
        x1, y1, x2, y2 = (self._snap(v) for v in (*start, *end))
        paint = celiagg.LinearGradientPaint(
            x1, y1, x2, y2, _stops(stops), celiagg.GradientSpread.SpreadPad, celiagg.GradientUnits.UserSpace
        )
        self._canvas.draw_shape(self.path(shape), _IDENTITY, _PLAIN if clip is None else clip.state, fill=paint)

    def radial(
        self,
        shape: Points | Sequence[Points],
        centre: tuple[float, float],
        radius: float,
        stops: Sequence[Stop],
        clip: Stencil | None = None,
    ) -> None:
        """Fills with a gradient from `centre` outwards to `radius` design units."""
        x, y, r = self._snap(centre[0]), self._snap(centre[1]), self._snap(radius)
        paint = celiagg.RadialGradientPaint(
            x, y, r, x, y, _stops(stops), celiagg.GradientSpread.SpreadPad, celiagg.GradientUnits.UserSpace
        )
        self._canvas.draw_shape(self.path(shape), _IDENTITY, _PLAIN if clip is None else clip.state, fill=paint)

    def glow(
        self, centre: tuple[float, float], radius: float, colour: Colour, alpha: float, clip: Stencil | None = None
    ) -> None:
        """A soft round spot that fades from `alpha` at its centre to nothing at `radius`."""
        self.radial(ellipse(*centre, radius, radius), centre, radius, [(0.0, colour, alpha), (1.0, colour, 0.0)], clip)

    def _snap(self, value: float) -> float:
        return round(value * self.scale * GRID) / GRID


def _stops(stops: Sequence[Stop]) -> list[tuple[float, float, float, float, float]]:
    return [(t, r / 255.0, g / 255.0, b / 255.0, round(a * 255.0) / 255.0) for t, (r, g, b), a in stops]
