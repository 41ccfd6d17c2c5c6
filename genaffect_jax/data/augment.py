"""Augmentation of the autoencoder's training images, and random scenes without faces.

The autoencoder also serves images of other drawing systems, so it must not specialise in one palette or line width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import celiagg as agg
import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "H W 3"]


def augment(image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the image, moved, mirrored, recoloured and drawn over, each with some probability.

    The result is a function of the image and the generator's state.

    Raises:
        TypeError: the image is not uint8.
        ValueError: its shape is not [H, W, 3].
    """
    if image.dtype != np.uint8:
        raise TypeError(f"augment: the image has dtype {image.dtype}, must be uint8")
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"augment: the image has shape {image.shape}, must be (height, width, 3)")
    image = np.array(image, order="C")
    for change, probability in ((_move, 0.7), (_mirror, 0.5), (_recolour, 0.7), (_draw_over, 0.3)):
        if rng.random() < probability:
            image = change(image, rng)
    return np.ascontiguousarray(image)


def random_scene(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A square of random vector shapes: discs, polygons, curves, thin lines, dots and text-like strokes.

    Args:
        rng: decides everything.
        size: side, in pixels.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"random_scene: size={size}: must be at least 1")
    palette = _palette(rng)
    image = np.empty((size, size, 3), np.uint8)
    canvas = agg.CanvasRGB24(image)
    background = agg.Path()
    background.rect(0, 0, size, size)
    canvas.draw_shape(
        background, agg.Transform(), _state(agg.DrawingMode.DrawFill), fill=_paint(rng, palette, size, 1.0)
    )
    for _ in range(int(rng.integers(4, 16))):
        _SHAPES[rng.choice(len(_SHAPES), p=_SHARES)](canvas, rng, palette, size)
    return image


def _move(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Scale 0.6 to 1.6, rotation up to 30 degrees, shift up to 15 %; a plain colour fills the uncovered part."""
    height, width = image.shape[:2]
    angle, zoom = math.radians(rng.uniform(-30, 30)), 2.0 ** rng.uniform(-0.7, 0.7)
    shift = rng.uniform(-0.15, 0.15, 2) * (width, height)
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    # Pillow wants the map from new to old coordinates; its pixel centres are at halves.
    matrix = (
        cosine,
        sine,
        x - cosine * (x + shift[0]) - sine * (y + shift[1]),
        -sine,
        cosine,
        y + sine * (x + shift[0]) - cosine * (y + shift[1]),
    )
    corner = tuple(int(c) for c in image[0, 0]) if rng.random() < 0.5 else tuple(rng.integers(0, 256, 3).tolist())
    # Bicubic, as bilinear interpolation would soften outlines.
    moved = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=corner
    )
    return np.array(moved)


def _mirror(image: Pixels, rng: np.random.Generator) -> Pixels:
    if rng.random() < 0.2:
        image = image[::-1]
    return np.ascontiguousarray(image[:, ::-1])


def _recolour(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Channels reordered, then an affine map of them: hue, saturation, contrast, brightness, negative."""
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    # Rotation about the grey axis (Rodrigues' formula) turns the hue and keeps grey grey.
    hue, saturation, contrast = rng.uniform(-math.pi, math.pi), rng.uniform(0.0, 1.5), rng.uniform(0.6, 1.4)
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = grey + saturation * (math.cos(hue) * (np.eye(3) - grey) + math.sin(hue) * cross)
    if rng.random() < 0.15:
        contrast = -contrast
    matrix = (contrast * turn).astype(np.float32)
    offset = np.float32(127.5 + rng.uniform(-40, 40)) - matrix @ np.full(3, 127.5, np.float32)
    changed = image.reshape(-1, 3).astype(np.float32) @ matrix.T + offset
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8).reshape(image.shape)


def _draw_over(image: Pixels, rng: np.random.Generator) -> Pixels:
    image = np.ascontiguousarray(image)
    canvas, palette = agg.CanvasRGB24(image), _palette(rng)
    for _ in range(int(rng.integers(1, 4))):
        _SHAPES[rng.choice(len(_SHAPES), p=_SHARES)](canvas, rng, palette, min(image.shape[:2]))
    return image


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Five colours: drawn images repeat few colours, black and white among them."""
    palette = rng.random((5, 3))
    if rng.random() < 0.5:
        palette = palette.mean(0) + 0.4 * (palette - palette.mean(0))  # related colours, as in shaded skin or hair
    palette[0], palette[1] = rng.choice([0.0, 0.05, 0.15]), rng.choice([1.0, 0.95])
    return palette


def _colour(rng: np.random.Generator, palette: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = palette[rng.integers(len(palette))].tolist()
    return red, green, blue


def _paint(rng: np.random.Generator, palette: np.ndarray, size: int, opacity: float | None = None) -> Any:
    """A plain colour, or sometimes a gradient across the image."""
    if opacity is None:
        opacity = 1.0 if rng.random() < 0.75 else rng.uniform(0.2, 0.9)
    if rng.random() < 0.7:
        return agg.SolidPaint(*_colour(rng, palette), opacity)
    stops = [(0.0, *_colour(rng, palette), opacity), (1.0, *_colour(rng, palette), opacity)]
    a, b = rng.uniform(0, size, (2, 2)).tolist()
    spread, units = agg.GradientSpread.SpreadPad, agg.GradientUnits.UserSpace
    if rng.random() < 0.5:
        return agg.LinearGradientPaint(*a, *b, stops, spread, units)
    return agg.RadialGradientPaint(*a, rng.uniform(0.2, 1.0) * size, *a, stops, spread, units)


def _state(mode: Any, line_width: float = 1.0) -> Any:
    return agg.GraphicsState(
        drawing_mode=mode, line_width=line_width, line_cap=agg.LineCap.CapRound, line_join=agg.LineJoin.JoinRound
    )


def _line_width(rng: np.random.Generator, size: int) -> float:
    """Mostly thin: half a pixel to 6 % of the side, log-uniform."""
    return float(np.exp(rng.uniform(np.log(0.5), np.log(max(1.0, 0.06 * size)))))


def _draw(canvas: Any, path: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    """Fills the path, outlines it, or both."""
    modes = (agg.DrawingMode.DrawFill, agg.DrawingMode.DrawFillStroke, agg.DrawingMode.DrawStroke)
    state = _state(modes[rng.choice(3, p=(0.5, 0.3, 0.2))], _line_width(rng, size))
    fill, stroke = _paint(rng, palette, size), agg.SolidPaint(*_colour(rng, palette), 1.0)
    canvas.draw_shape(path, agg.Transform(), state, fill=fill, stroke=stroke)


def _ellipse(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    path = agg.Path()
    radii = size * np.exp(rng.uniform(np.log(0.01), np.log(0.45))) * rng.uniform(0.5, 1.0, 2)
    path.ellipse(*rng.uniform(0, size, 2).tolist(), *radii.tolist())
    _draw(canvas, path, rng, palette, size)


def _polygon(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    corners = int(rng.integers(3, 8))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radii = rng.uniform(0.3, 1.0, corners) * size * rng.uniform(0.05, 0.45)
    points = rng.uniform(0, size, 2) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    path = agg.Path()
    path.lines(points)
    path.close()
    _draw(canvas, path, rng, palette, size)


def _blob(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    """A closed smooth outline: quadratic arcs from middle to middle of a polygon's sides."""
    corners = int(rng.integers(4, 9))
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    radii = rng.uniform(0.4, 1.0, corners) * size * rng.uniform(0.05, 0.45)
    points = rng.uniform(0, size, 2) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    middles = (points + np.roll(points, -1, 0)) / 2
    path = agg.Path()
    path.move_to(*middles[-1].tolist())
    for point, middle in zip(points.tolist(), middles.tolist(), strict=True):
        path.quadric_to(*point, *middle)
    path.close()
    _draw(canvas, path, rng, palette, size)


def _curve(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    path = agg.Path()
    points = rng.uniform(0, size, 2) + rng.normal(0, 0.25 * size, (4, 2))
    path.move_to(*points[0].tolist())
    path.cubic_to(*points[1:].ravel().tolist())
    _stroke(canvas, path, rng, palette, size)


def _hatching(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    """Parallel thin lines, as of strands of hair or stripes."""
    count, pitch = int(rng.integers(3, 10)), rng.uniform(0.02, 0.08) * size
    direction = rng.normal(size=2)
    direction /= np.hypot(*direction)
    start, length = rng.uniform(0, size, 2), rng.uniform(0.1, 0.6) * size
    path = agg.Path()
    for i in range(count):
        a = start + i * pitch * direction[::-1] * (1, -1)
        path.move_to(*a.tolist())
        path.line_to(*(a + length * direction).tolist())
    _stroke(canvas, path, rng, palette, size)


def _writing(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    """A line of small made-up letters, each of two or three straight or round strokes."""
    height = rng.uniform(0.04, 0.14) * size
    x, y = rng.uniform(0, 0.7 * size), rng.uniform(height, size)
    path = agg.Path()
    for _ in range(int(rng.integers(3, 10))):
        box = np.array([x, y]), np.array([0.6 * height, -height])
        for _ in range(int(rng.integers(2, 4))):
            a, b, c = (box[0] + box[1] * rng.integers(0, 3, 2) / 2 for _ in range(3))
            path.move_to(*a.tolist())
            if rng.random() < 0.5:
                path.line_to(*b.tolist())
            else:
                path.quadric_to(*c.tolist(), *b.tolist())
        x += 0.9 * height
    _stroke(canvas, path, rng, palette, size, max(0.6, height * rng.uniform(0.06, 0.2)))


def _dots(canvas: Any, rng: np.random.Generator, palette: np.ndarray, size: int) -> None:
    """A few small discs of one colour, as freckles or buttons."""
    path, radius = agg.Path(), max(0.5, rng.uniform(0.004, 0.025) * size)
    centres = rng.uniform(0, size, 2) + rng.normal(0, 0.1 * size, (int(rng.integers(3, 14)), 2))
    for x, y in centres.tolist():
        path.ellipse(x, y, radius, radius)
    paint = agg.SolidPaint(*_colour(rng, palette), 1.0)
    canvas.draw_shape(path, agg.Transform(), _state(agg.DrawingMode.DrawFill), fill=paint)


def _stroke(
    canvas: Any, path: Any, rng: np.random.Generator, palette: np.ndarray, size: int, width: float | None = None
) -> None:
    state = _state(agg.DrawingMode.DrawStroke, _line_width(rng, size) if width is None else width)
    paint = agg.SolidPaint(*_colour(rng, palette), 1.0)
    canvas.draw_shape(path, agg.Transform(), state, stroke=paint)


_SHAPES: tuple[Callable[[Any, np.random.Generator, np.ndarray, int], None], ...] = (
    _ellipse,
    _polygon,
    _blob,
    _curve,
    _hatching,
    _writing,
    _dots,
)
_SHARES = (0.25, 0.15, 0.2, 0.2, 0.06, 0.08, 0.06)
