"""Confusion matrices of all words as a drawing in which each cell says under the pointer what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from genaffect_jax.evaluation.markup import Html, element

# Side of a matrix and margins, in pixels of a drawing of 860 pixels.
_SIDE, _LEFT, _TOP, _GAP, _WIDTH = 378, 68, 62, 24, 860
_SAMPLES = (0.1, 0.25, 0.5, 1.0)


def confusion_maps(
    shares: Float[np.ndarray, "K K"],
    true_shares: Float[np.ndarray, "K K"],
    names: Sequence[str],
    clusters: Mapping[str, Sequence[str]],
) -> Html:
    """The matrices of generated and of true images side by side, as SVG.

    Written by hand, not by a plotting library: a plot of 18,000 cells is an image without names.

    Args:
        shares: of the generated images of each word (rows) that are read as each word; nan rows were not asked for.
        true_shares: the same of the true images.
        names: the words, in the order of both axes.
        clusters: neighbouring words by the name of their cluster, in the same order.
    """
    label = "Confusion matrices of all words, of generated and of true images"
    parts = [element("title", label)]
    for place, (title, matrix) in enumerate((("generated images", shares), ("true images", true_shares))):
        left = _LEFT + place * (_SIDE + _GAP)
        parts.append(_map(title, matrix, names, clusters, left, rows=place == 0))
    height = _TOP + _SIDE + 34
    parts.append(_key(height - 8))
    settings = {"class": "plot", "role": "img", "viewBox": f"0 0 {_WIDTH} {height}", "width": _WIDTH, "height": height}
    return element("svg", *parts, aria_label=label, **settings)


def _map(
    title: str,
    matrix: Float[np.ndarray, "K K"],
    names: Sequence[str],
    clusters: Mapping[str, Sequence[str]],
    left: int,
    rows: bool,
) -> Html:
    count = len(names)
    parts = [_text(left, 14, f"{title}: read as", "ink")]
    bounds = np.cumsum([0, *(len(words) for words in clusters.values())]) * _SIDE / count
    frame, lines = {"fill": "none", "stroke": "var(--line)"}, []
    for name, low, high in zip(clusters, bounds[:-1], bounds[1:], strict=True):
        x, y = left + (low + high) / 2, _TOP + (low + high) / 2
        turned = f"translate({x + 3:.1f} {_TOP - 5}) rotate(-40)"
        parts.append(element("text", name, transform=turned, font_size="11", fill="var(--muted)"))
        if rows:
            parts.append(_text(left - 6, y + 4, name, "muted", "end"))
        for path in (f"M{left} {_TOP + high:.1f}h{_SIDE}", f"M{left + high:.1f} {_TOP}v{_SIDE}"):
            lines.append(element("path", d=path, **frame))
    cells = []
    for i, row in enumerate(matrix):
        if np.isnan(row).all():
            note = element("title", f"{names[i]}: not asked for")
            cells.append(element("path", note, d=f"M0 {i}h{count}v1h-{count}z", fill="var(--band)"))
            continue
        for j in np.flatnonzero(row > 0).tolist():
            note = element("title", f"{names[i]} read as {names[j]}: {row[j]:.2f}")
            colour = "var(--blue)" if i == j else "var(--orange)"
            settings = {"fill": colour, "fill-opacity": f"{_opacity(row[j]):.2f}"}
            cells.append(element("path", note, d=f"M{j} {i}h1v1h-1z", **settings))
    scale = f"translate({left} {_TOP}) scale({_SIDE / count:.4f})"
    parts += [element("g", *cells, transform=scale), *lines]
    parts.append(element("rect", x=left, y=_TOP, width=_SIDE, height=_SIDE, fill="none", stroke="var(--muted)"))
    return element("g", *parts)


def _key(y: int) -> Html:
    """What the colours say."""
    parts, x = [_text(_LEFT, y, "share of the word's images:", "muted")], _LEFT + 185
    for share in _SAMPLES:
        for colour in ("blue", "orange"):
            settings = {"fill": f"var(--{colour})", "fill-opacity": f"{_opacity(share):.2f}"}
            parts.append(element("rect", x=x, y=y - 9, width=10, height=10, **settings))
            x += 12
        parts.append(_text(x + 2, y, f"{share:g}", "muted"))
        x += 34
    parts.append(_text(x + 8, y, "blue: as the wanted word; orange: as another", "muted"))
    return element("g", *parts)


def _opacity(share: float) -> float:
    """Darker than in proportion, so that a single image of a word is seen."""
    return float(np.sqrt(share))


def _text(x: float, y: float, content: str, colour: str, anchor: str = "start") -> Html:
    settings = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": "12", "text-anchor": anchor}
    return element("text", content, fill=f"var(--{colour})", **settings)
