"""A small vector canvas over celiagg: smooth shapes from few control points, gradients, clipping.

All coordinates are design units: the image is 256 x 256 units whatever its size in pixels. Before anything reaches
the rasteriser the control points are rounded to 1/256 pixel, and curves are flattened with dyadic weights, so every
intermediate sum is exact in float64 and the polygons are the same bits on every machine, whatever order or fused
instruction evaluates them.

celiagg 2.1 widens every filled shape by half a pixel on all sides (it passes fills through a contour denoiser of
width 1 that no setting switches off). The art is tuned to that at 256 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import celiagg
import numpy as np
from jaxtyping import Float, UInt8

DESIGN = 256.0
STEPS = 8  # polygon edges per curve span; a power of two keeps the spline weights dyadic
GRID = 256.0  # coordinates are multiples of 1/GRID pixel, the rasteriser's own sub-pixel resolution

Points = Float[np.ndarray, "N 2"]
Colour = tuple[int, int, int]
Stop = tuple[float, Colour, float]
Shape = Points | Sequence[Points]
SideBySide = Float[np.ndarray, "N 2K"]  # K shapes of N points each, columns x, y, x, y, ...
_Form = tuple[Callable[[Any], Float[np.ndarray, "M N"]], int | tuple[int, ...]]

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
    return _UNIT_CIRCLE * (rx, ry) + (cx, cy)


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
def _ring_weights(lengths: tuple[int, int]) -> Float[np.ndarray, "M N"]:
    """Flattens two closed curves, stacked, into the first one way round and the second the other way."""
    outer, inner = (_closed_weights(n) for n in lengths)
    # Each curve is closed; the seam between them runs both ways and cancels exactly.
    outer, inner = np.concatenate([outer, outer[:1]]), np.concatenate([inner, inner[:1]])[::-1]
    return np.block(
        [
            [outer, np.zeros((len(outer), lengths[1]))],
            [np.zeros((len(inner), lengths[0])), inner],
        ]
    )


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


def _normals(centres: SideBySide, half_widths: Float[np.ndarray, "N K"]) -> SideBySide:
    """A quarter turn from the direction of each line at each control point, `half_widths` long."""
    n = len(centres)
    normal = _tangent_weights(n).dot(centres).reshape(-1, 2).dot(_TURN)
    scale = half_widths / np.sqrt((normal * normal).dot(_SUM) + 1e-12).reshape(n, -1)
    return (normal * scale.reshape(-1, 1)).reshape(n, -1)


class Stencil:
    """A clipping region: shapes drawn with it appear only where it was filled."""

    def __init__(self, size: int):
        coverage = np.zeros((size, size), np.uint8)
        self.canvas = celiagg.CanvasG8(coverage)
        image = celiagg.Image(coverage, celiagg.PixelFormat.Gray8)
        self.state = celiagg.GraphicsState(drawing_mode=celiagg.DrawingMode.DrawFill, stencil=image)


class Canvas:
    """A `size` x `size` RGB image addressed in design units.

    Every drawing call takes a shape as one or more *chains* of control points: each chain becomes a smooth open curve
    and the chains are joined by straight edges into one polygon. A single array is a smooth closed curve. A shape that
    is drawn twice can be made a path first.

    Drawing calls only take notes; `render` does the work. Most shapes have few points, so that NumPy would spend its
    time on starting calls: `render` flattens all shapes of one form (so many points, closed, open or stroked) at once
    and then fills them in the order in which they were drawn.
    """

    def __init__(self, size: int):
        self.scale = size / DESIGN
        self._to_grid = self.scale * GRID
        self._pixels: UInt8[np.ndarray, "H W 3"] = np.empty((size, size, 3), np.uint8)
        self._canvas = celiagg.CanvasRGB24(self._pixels)
        self._size = size
        # By form, here the weights that flatten it: paths yet to be filled in, and their control points.
        self._shapes: dict[_Form, list[tuple[celiagg.Path, Points]]] = {}
        # By the number of control points: the same with half-widths, for strokes.
        self._strokes: dict[int, list[tuple[celiagg.Path, Points, Sequence[float] | np.ndarray]]] = {}
        self._fills: list[tuple[celiagg.CanvasBase, celiagg.Path, celiagg.GraphicsState, celiagg.Paint]] = []
        self.face = Stencil(size)

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image with everything drawn so far; the canvas goes on drawing on the same array."""
        for n, strokes in self._strokes.items():
            paths, centres, half_widths = zip(*strokes, strict=True)
            centre = np.concatenate(centres, axis=1)
            points = np.concatenate([centre, _normals(centre, np.array(half_widths, np.float64).T)])
            self._flatten(paths, points, _ribbon_weights(n))
        for (weights_of, size), shapes in self._shapes.items():
            paths, chains = zip(*shapes, strict=True)
            self._flatten(paths, np.concatenate(chains, axis=1), weights_of(size))
        for canvas, path, state, paint in self._fills:
            canvas.draw_shape(path, _IDENTITY, state, fill=paint)
        self._strokes, self._shapes, self._fills = {}, {}, []
        return self._pixels

    def _flatten(self, paths: Sequence[celiagg.Path], points: SideBySide, weights: Float[np.ndarray, "M N"]) -> None:
        """Adds to each path the polygon that `weights` makes of its control points."""
        corners = weights.dot(np.rint(points * self._to_grid)).reshape(len(weights), -1, 2)
        for path, polygon in zip(paths, corners.transpose(1, 0, 2).copy(), strict=True):
            path.lines(polygon)
            path.close()

    def backdrop(self, start: Colour, end: Colour) -> None:
        """Covers the image with a gradient from the top left corner to the bottom right one, under all shapes.

        Row y is the same ramp of colours begun y places later, so a strided copy does it at the cost of a clear.
        """
        last = 2 * self._size - 2
        place = np.arange(last + 1)[:, None]
        ramp = (np.array(start) * (last - place) + np.array(end) * place + last // 2) // last
        rows = np.lib.stride_tricks.sliding_window_view(ramp.astype(np.uint8).ravel(), 3 * self._size)[::3]
        self._pixels.reshape(self._size, -1)[:] = rows

    def path(self, *shapes: Shape) -> celiagg.Path:
        """One path of several shapes; where they overlap they do not add up."""
        path = celiagg.Path()
        for shape in shapes:
            if isinstance(shape, np.ndarray):
                self._add(path, shape, (_closed_weights, len(shape)))
            else:
                self._add(path, np.concatenate(shape), (_chain_weights, tuple([len(chain) for chain in shape])))
        return path

    def _add(self, path: celiagg.Path, points: Points, form: _Form) -> None:
        self._shapes.setdefault(form, []).append((path, points))

    def clip(self, shape: Shape | celiagg.Path, stencil: Stencil | None = None) -> Stencil:
        """A new region, the inside of `shape`; or `stencil` with that region added."""
        stencil = stencil or Stencil(self._size)
        self._fills.append((stencil.canvas, self._path_of(shape), _PLAIN, _WHITE))
        return stencil

    def fill(
        self, shape: Shape | celiagg.Path, colour: Colour, alpha: float = 1.0, clip: Stencil | None = None
    ) -> None:
        """Fills with one colour; `alpha` in [0, 1] is rounded to 1/255."""
        r, g, b = colour
        paint = celiagg.SolidPaint(r / 255.0, g / 255.0, b / 255.0, round(255.0 * alpha) / 255.0)
        self._paint(shape, paint, clip)

    def stroke(
        self,
        centre: Points,
        half_width: Sequence[float] | np.ndarray,
        colour: Colour,
        alpha: float = 1.0,
        clip: Stencil | None = None,
    ) -> None:
        """A tapered line through `centre`, `half_width` design units to each side at each control point."""
        self.strokes((centre,), half_width, colour, alpha, clip)

    def strokes(
        self,
        centres: Sequence[Points] | Float[np.ndarray, "K N 2"],
        half_width: Sequence[float] | np.ndarray,
        colour: Colour,
        alpha: float,
        clip: Stencil | None = None,
    ) -> None:
        """Several tapered lines of one colour and one taper in one pass."""
        path = celiagg.Path()
        for centre in centres:
            self._strokes.setdefault(len(centre), []).append((path, centre, half_width))
        self.fill(path, colour, alpha, clip)

    def ring(self, outer: Points, inner: Points, colour: Colour, alpha: float = 1.0) -> None:
        """Fills between two smooth closed curves; `inner` lies inside `outer` and both turn the same way."""
        path = celiagg.Path()
        self._add(path, np.concatenate([outer, inner]), (_ring_weights, (len(outer), len(inner))))
        self.fill(path, colour, alpha)

    def _paint(self, shape: Shape | celiagg.Path, paint: celiagg.Paint, clip: Stencil | None) -> None:
        self._fills.append((self._canvas, self._path_of(shape), _PLAIN if clip is None else clip.state, paint))

    def _path_of(self, shape: Shape | celiagg.Path) -> celiagg.Path:
        return shape if isinstance(shape, celiagg.Path) else self.path(shape)

    def linear(
        self,
        shape: Shape | celiagg.Path,
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
        self._paint(shape, paint, clip)

    def radial(
        self,
        shape: Shape | celiagg.Path,
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
        self._paint(shape, paint, clip)

    def glow(
        self, centre: tuple[float, float], radius: float, colour: Colour, alpha: float, clip: Stencil | None = None
    ) -> None:
        """A soft round spot that fades from `alpha` at its centre to nothing at `radius`."""
        self.radial(ellipse(*centre, radius, radius), centre, radius, [(0.0, colour, alpha), (1.0, colour, 0.0)], clip)

    def _snap(self, value: float) -> float:
        return round(value * self.scale * GRID) / GRID


def _stops(stops: Sequence[Stop]) -> list[tuple[float, float, float, float, float]]:
    return [(t, r / 255.0, g / 255.0, b / 255.0, round(a * 255.0) / 255.0) for t, (r, g, b), a in stops]
