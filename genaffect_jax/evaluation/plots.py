"""Plots of an evaluation as SVG text: equal input gives equal text, and the page's style decides the colours.

Plots are drawn with fixed colours, which are then replaced by the variables of `markup.STYLE`; text stays text. One
unit of a drawing is one pixel of the page at its full width.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genaffect_jax.evaluation.cells import NOT_MEASURED
from genaffect_jax.evaluation.labels import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from genaffect_jax.evaluation.figures import Dial

WIDTH = 860
_INK, _MUTED, _LINE, _PAPER = "#1b1b1a", "#62605b", "#d8d6d0", "#fffffe"
BLUE, ORANGE = "#0067a5", "#b84e00"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _PAPER: "paper", BLUE: "blue", ORANGE: "orange"}
_TEXT, _SMALL = 12, 11
_DASHED: Any = (0, (3, 3))
# Pixels at the right of a scatter that its names may reach into.
_SPILL = 70
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Names of people and groups may hold any character.
    "text.parse_math": False,
    "font.size": _TEXT,
    "axes.labelsize": _TEXT,
    "xtick.labelsize": _SMALL,
    "ytick.labelsize": _SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": _TEXT,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Axis:
    """What one axis of a scatter shows."""

    label: str
    """Title, with the direction that is better."""
    values: tuple[float, ...]
    """Of each point."""


@dataclass(frozen=True)
class Mark:
    """A point of a scatter that is not one of many, with the intervals of both axes."""

    name: str
    x: float
    y: float
    x_ends: tuple[float, float] = (math.nan, math.nan)
    y_ends: tuple[float, float] = (math.nan, math.nan)
    strong: bool = True
    """Filled, not hollow."""
    shape: str = "o"
    """matplotlib's marker."""


def scatter(
    name: str,
    title: str,
    x: Axis,
    y: Axis,
    marks: Sequence[Mark] = (),
    *,
    names: Sequence[str] = (),
    cross: tuple[float, float] | None = None,
    height: int = 460,
) -> str:
    """Points by two figures, and marks among them.

    Args:
        name: of the plot; no other plot of the page has it.
        title: what it shows, for readers who do not see it.
        x, y: the axes with as many points each; a point without both values is left out.
        marks: drawn over the points, the first one on top, with their names.
        names: of all points; an empty one is not shown.
        cross: a place whose two coordinates are drawn as thin lines.
        height: in pixels.
    """
    with _drawing(name, title, WIDTH, height) as drawing:
        axes = drawing.figure.add_axes((62 / WIDTH, 50 / height, (WIDTH - 62 - _SPILL) / WIDTH, (height - 66) / height))
        axes.scatter(x.values, y.values, s=26, color=BLUE, alpha=0.55, linewidth=0, clip_on=False)
        for mark in reversed(marks):
            axes.plot([mark.x_ends[0], mark.x_ends[1]], [mark.y] * 2, color=_MUTED, linewidth=1)
            axes.plot([mark.x] * 2, [mark.y_ends[0], mark.y_ends[1]], color=_MUTED, linewidth=1)
            face = ORANGE if mark.strong else _PAPER
            axes.scatter([mark.x], [mark.y], s=46, marker=mark.shape, color=face, edgecolor=ORANGE, zorder=3)
        if cross is not None:
            axes.axvline(cross[0], color=_MUTED, linewidth=0.8, linestyle=_DASHED, zorder=0)
            axes.axhline(cross[1], color=_MUTED, linewidth=0.8, linestyle=_DASHED, zorder=0)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        axes.margins(0.06)
        shown = [*(names or [""] * len(x.values)), *(mark.name for mark in marks)]
        at = [*zip(x.values, y.values, strict=True), *((mark.x, mark.y) for mark in marks)]
        ends = [
            *(((m.x_ends[0], m.y), (m.x_ends[1], m.y)) for m in marks),
            *(((m.x, m.y_ends[0]), (m.x, m.y_ends[1])) for m in marks),
        ]
        _annotate(axes, at, shown, ends)
    return drawing.svg


def dial_curves(dials: Mapping[str, Dial]) -> str:
    """Of each word, the amounts that were asked for, generated and true, and below them the cosine to the reference.

    A dial without generated amounts says that they were not measured; one without true amounts has no curve of them.

    Raises:
        ValueError: no dials.
    """
    if not dials:
        raise ValueError("dial_curves: no dials")
    columns = min(4, len(dials))
    bands = math.ceil(len(dials) / columns)
    height = 350 * bands + 30
    amounts = [a for dial in dials.values() for a in (*dial.intensities, *dial.generated, *dial.true)]
    cosines = [c for dial in dials.values() for c in dial.cosine_to_reference]
    with _drawing("dials", "Dial curves of " + ", ".join(dials), WIDTH, height) as drawing:
        for place, (word, dial) in enumerate(dials.items()):
            band, column = divmod(place, columns)
            # Room for a label of two lines beside ticks of three decimals.
            left, wide = (72 + column * (WIDTH - 62) / columns) / WIDTH, ((WIDTH - 62) / columns - 26) / WIDTH
            top = 1 - (54 + 350 * band) / height
            upper = drawing.figure.add_axes((left, top - 180 / height, wide, 180 / height))
            lower = drawing.figure.add_axes((left, top - 280 / height, wide, 78 / height))
            upper.plot(dial.intensities, dial.intensities, color=_MUTED, linewidth=1, linestyle=_DASHED)
            if dial.true:
                upper.plot(dial.intensities, dial.true, color=BLUE, marker="s", markersize=3.5)
            if dial.generated:
                upper.plot(dial.intensities, dial.generated, color=ORANGE, marker="o", markersize=4.5)
            else:
                upper.text(0.04, 0.92, NOT_MEASURED, transform=upper.transAxes, color=_MUTED)
            lower.plot(dial.intensities, dial.cosine_to_reference, color=ORANGE, marker="o", markersize=4.5)
            upper.set_title(word, loc="left", fontsize=13, color=_INK)
            for axes, values in ((upper, amounts), (lower, cosines)):
                axes.set_ylim(*_limits(values))
                axes.set_xticks([0, 0.5, 1, 1.5])
                axes.grid(axis="y", color=_LINE, linewidth=0.7)
            upper.tick_params(labelbottom=False)
            lower.set_xlabel("intensity asked for")
            if column:
                upper.tick_params(labelleft=False)
                lower.tick_params(labelleft=False)
            else:
                upper.set_ylabel("amount read")
                lower.set_ylabel("cosine to\nthe reference")
        key = [("generated", ORANGE, False, "o"), ("as asked for", _MUTED, True, "")]
        if any(dial.true for dial in dials.values()):
            key.insert(1, ("true images", BLUE, False, "s"))
        _key(drawing.figure, key, height)
    return drawing.svg


def group_strips(
    attributes: Sequence[Mapping[str, str]], panels: Mapping[str, Sequence[float]], smallest: int
) -> str | None:
    """Every person's figures by the groups that the person is in, with the mean of each group.

    Args:
        attributes: of each person.
        panels: a figure of each person, by its title.
        smallest: people from which a group has a mean.

    Returns:
        The plot; None if no attribute is known.
    """
    rows: list[tuple[str, str, list[int]]] = []
    for attribute in dict.fromkeys(name for one in attributes for name in one):
        of = [one.get(attribute) for one in attributes]
        known = {v for v in of if v is not None}
        rows += [(attribute, value, [i for i, v in enumerate(of) if v == value]) for value in sorted(known)]
    if not rows or not panels:
        return None
    step, gap, left, last = 19.0, 11.0, 214, ""
    heights: list[float] = []
    for attribute, _, _ in rows:
        heights.append((heights[-1] + step if heights else step / 2) + (gap if last and attribute != last else 0.0))
        last = attribute
    tall = heights[-1] + step / 2
    height = int(tall + 56)
    wide = (WIDTH - left - 12 - 24 * (len(panels) - 1)) / len(panels)
    with _drawing("groups", " and ".join(panels) + " of every person, by group", WIDTH, height) as drawing:
        for column, (title, values) in enumerate(panels.items()):
            at = ((left + column * (wide + 24)) / WIDTH, 26 / height, wide / WIDTH, tall / height)
            axes = drawing.figure.add_axes(at)
            found = np.asarray(values, np.float64)
            axes.set_ylim(tall, 0)
            axes.spines["left"].set_visible(False)
            axes.axvline(float(np.nanmean(found)), color=_MUTED, linewidth=0.8, linestyle=_DASHED, zorder=0)
            for (_, _, people), y in zip(rows, heights, strict=True):
                inside = found[people]
                inside = inside[np.isfinite(inside)]
                axes.plot(inside, [y] * len(inside), "o", color=BLUE, alpha=0.45, markersize=6, markeredgewidth=0)
                if len(inside) >= smallest:
                    axes.plot([inside.mean()] * 2, [y - 7, y + 7], color=ORANGE, linewidth=3, solid_capstyle="butt")
            axes.set_yticks([])
            axes.set_title(title, loc="left", fontsize=_TEXT)
            axes.margins(x=0.04)
            if column:
                continue
            last = ""
            for (attribute, value, people), y in zip(rows, heights, strict=True):
                settings: dict[str, Any] = {"xycoords": ("figure fraction", "data"), "va": "center"}
                if attribute != last:
                    axes.annotate(attribute, (0, y), color=_INK, **settings)
                last, label = attribute, f"{value} ({len(people)})"
                axes.annotate(label, ((left - 12) / WIDTH, y), color=_MUTED, ha="right", **settings)
    return drawing.svg


@dataclass
class _Drawing:
    """A plot while it is drawn, and its text afterwards."""

    figure: Any
    svg: str = ""


@contextmanager
def _drawing(name: str, title: str, width: int, height: int) -> Iterator[_Drawing]:
    """A figure to draw in, with matplotlib's own defaults whatever the user's are; the SVG is there after the block."""
    # Takes a second to import; a command that has not come to its report does without.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": name})
        drawing = _Drawing(Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none"))
        yield drawing
        file = io.StringIO()
        drawing.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing.svg = _inline(file.getvalue(), title, width, height)


def _inline(svg: str, title: str, width: int, height: int) -> str:
    """The drawing as part of a page: no header, the page's colours, and only the names that it refers to."""
    svg = re.sub(r"^.*?<svg[^>]*>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Names of groups are the same in all drawings, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    label = html.escape(title)
    return (
        f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" xmlns:xlink="http://www.w3.org/1999/xlink"><title>{label}</title>{svg}'
    )


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    margin = 0.06 * (max(finite) - min(finite)) or 0.05
    return min(finite) - margin, max(finite) + margin


def _key(figure: Any, entries: Sequence[tuple[str, str, bool, str]], height: int) -> None:
    """A line of what the curves are, at the top left."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linestyle=_DASHED if dashed else "-", marker=marker, markersize=4.5)
        for _, colour, dashed, marker in entries
    ]
    labels = [name for name, *_ in entries]
    place = {"loc": "upper left", "bbox_to_anchor": (46 / WIDTH, 1 + 4 / height), "ncols": len(entries)}
    figure.legend(handles, labels, handlelength=2.2, columnspacing=2, **place)


_Point = tuple[float, float]


def _annotate(
    axes: Axes, points: Sequence[_Point], names: Sequence[str], lines: Sequence[tuple[_Point, _Point]]
) -> None:
    """Writes the names beside their points, where they cover the least of what is drawn."""
    # Limits are final from here on.
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())

    def pixels(point: _Point) -> _Point:
        x, y = axes.transData.transform(point)
        return float(x), float(y)

    known = [(pixels(low), pixels(high)) for low, high in lines if np.isfinite([*low, *high]).all()]
    # Three pixels on each side of a line, so that no name touches it.
    boxes = [Box(min(a, c) - 3, min(b, d) - 3, max(a, c) + 3, max(b, d) + 3) for (a, b), (c, d) in known]
    frame = axes.get_window_extent()
    inside = Box(frame.x0, frame.y0, frame.x1 + _SPILL, frame.y1)
    places = place_labels([pixels(point) for point in points], names, _SMALL, inside, boxes)
    for point, name, place in zip(points, names, places, strict=True):
        if place is None:
            continue
        settings: dict[str, Any] = {"textcoords": "offset pixels", "fontsize": _SMALL, "va": "center"}
        if place.far:
            settings["arrowprops"] = {"arrowstyle": "-", "color": _MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(name, point, (place.dx, place.dy), ha=place.align, **settings)
