"""Pieces of self-contained HTML pages. Strings are escaped unless they are `Html`; no page needs another file."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from genaffect_jax.metrics.bootstrap import Interval

# Okabe and Ito's blue and vermillion (Color Universal Design, 2008), which colour-blind readers can tell apart; darker
# or lighter where text of that colour has to be read. Plots name the same variables.
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1b1a; --muted: #62605b; --line: #d8d6d0;
  --blue: #0067a5; --orange: #b84e00; --band: #f3f2ee; }
@media (prefers-color-scheme: dark) { :root { --paper: #161615; --ink: #e9e7e2; --muted: #a5a29a; --line: #403f3b;
  --blue: #5fb7ec; --orange: #f08c3c; --band: #21211f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 58rem; padding: 2.5rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 600; margin: 0 0 1.25rem; }
h2 { font-size: 1.15rem; line-height: 1.3; font-weight: 600; margin: 3.25rem 0 .5rem; }
p { margin: .5rem 0; max-width: 44rem; }
a { color: var(--blue); }
.muted, figcaption, small { color: var(--muted); }
.head { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem 1.5rem; margin: 0;
  padding: .9rem 0; border-top: 1px solid var(--ink); border-bottom: 1px solid var(--line); }
.head dt { font-size: .8rem; color: var(--muted); }
.head dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--muted); vertical-align: bottom; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
td { vertical-align: top; }
thead th { border-bottom: 1px solid var(--ink); }
tbody th { color: inherit; font-weight: 500; vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
td small, th small { display: block; font-weight: 400; font-size: .8rem; }
thead .number, .number .wrap { white-space: normal; }
.narrow { width: auto; } .narrow :is(th, td):not(:last-child) { padding-right: 2.5rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .85rem; max-width: 44rem; margin-top: .35rem; }
svg, img { max-width: 100%; height: auto; }
svg.plot { display: block; }
svg text { font-family: inherit !important; }
.bar { display: block; min-width: 180px; margin-top: .1rem; }
.rail { stroke: var(--line); stroke-width: 1; } .end { stroke: var(--muted); stroke-width: 1; }
.span { stroke: var(--blue); stroke-width: 9; opacity: .4; }
.value { stroke: var(--blue); stroke-width: 2; } .beyond { fill: var(--blue); }
.cost { fill: var(--blue); opacity: .6; }
.better { color: var(--blue); } .worse { color: var(--orange); }
.sheet img { display: block; border: 1px solid var(--line); }
:target { background: var(--band); }
"""
_BAR = (180, 16)
# Where floor and ceiling stand in a bar, as shares of its width; the rest is for values beyond them.
_FLOOR, _CEILING = 0.09, 0.91


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Html:
    """An element; children are escaped unless they are `Html`, values of attributes always.

    Args:
        tag: its name.
        children: text and elements inside.
        attributes: by name, `_` for `-` and a last `_` dropped (`class_`); None leaves one out.
    """
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    opened = "".join(f' {name}="{html.escape(str(value))}"' for name, value in pairs)
    inside = joined(children)
    return Html(f"<{tag}{opened}>{inside}</{tag}>") if tag not in ("img", "meta") else Html(f"<{tag}{opened}>")


def joined(children: Iterable[str], between: str = "") -> Html:
    """Texts, escaped unless they are `Html`, one after the other."""
    return Html(between.join(c if isinstance(c, Html) else html.escape(c) for c in children))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    numeric: Sequence[int] = (),
    narrow: bool = False,
) -> Html:
    """A table whose first column names the rows.

    Args:
        header: titles of the columns.
        rows: cells; a row that is shorter than the header ends in an empty wide cell.
        caption: what the table shows, for readers who do not see it.
        numeric: places of the columns that are set flush right.
        narrow: no wider than its text.
    """

    def cell(tag: str, place: int, content: str, span: int | None = None, scope: str | None = None) -> Html:
        return element(tag, content, class_="number" if place in numeric else None, colspan=span, scope=scope)

    body = []
    for row in rows:
        first, *others = row
        cells = [cell("th", 0, first, scope="row"), *(cell("td", i, c) for i, c in enumerate(others, 1))]
        if len(row) < len(header):
            cells.append(element("td", colspan=len(header) - len(row)))
        body.append(element("tr", *cells))
    titles = element("tr", *(cell("th", i, title, scope="col") for i, title in enumerate(header)))
    kind = "narrow" if narrow else None
    whole = element("table", element("thead", titles), element("tbody", *body), aria_label=caption, class_=kind)
    return element("div", whole, class_="wide")


def figure(svg: str, caption: str) -> Html:
    """A drawing, which is markup, with its caption."""
    return element("figure", Html(svg), element("figcaption", caption))


def document(title: str, *body: str) -> str:
    """A whole page without other files or scripts."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    ]
    page = element("html", element("head", *head), element("body", element("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def range_bar(found: Interval, floor: float, ceiling: float) -> Html:
    """A value with its interval on the way from the floor (left) to the ceiling (right), as a small drawing.

    A value beyond the drawing becomes an arrowhead at its end. Without a floor or a ceiling there is nothing to draw.
    """
    ends = (floor, ceiling, found.value)
    if not all(map(math.isfinite, ends)) or floor == ceiling:
        return Html("")
    width, height = _BAR

    def place(value: float) -> float:
        share = _FLOOR + (_CEILING - _FLOOR) * (value - floor) / (ceiling - floor)
        return width * min(max(share, 0.0), 1.0)

    middle, at = height / 2, place(found.value)
    marks = [_line("rail", place(floor), middle, place(ceiling), middle)]
    marks += [_line("end", place(end), 3, place(end), height - 3) for end in (floor, ceiling)]
    if math.isfinite(found.low):
        marks.append(_line("span", place(found.low), middle, place(found.high), middle))
    if 0 < at < width:
        marks.append(_line("value", at, 1, at, height - 1))
    else:
        tip, back = (0, 7) if at == 0 else (width, width - 7)
        marks.append(element("path", class_="beyond", d=f"M{tip} {middle}L{back} {middle - 4}V{middle + 4}Z"))
    share = (found.value - floor) / (ceiling - floor)
    return _small(f"{share:.0%} of the way from the floor to the ceiling", width, marks)


def difference_bar(found: Interval) -> Html:
    """A difference with its interval beside 0, at a scale of its own."""
    reach = max((abs(x) for x in (found.low, found.high, found.value) if math.isfinite(x)), default=0.0)
    if not reach:
        return Html("")
    width, height = _BAR
    place, middle = (lambda value: width / 2 * (1 + 0.94 * value / reach)), height / 2
    marks = [_line("rail", 4, middle, width - 4, middle), _line("end", width / 2, 3, width / 2, height - 3)]
    if math.isfinite(found.low):
        marks.append(_line("span", place(found.low), middle, place(found.high), middle))
    marks.append(_line("value", place(found.value), 1, place(found.value), height - 1))
    return _small("the interval includes 0" if not found.excludes_zero else "the interval excludes 0", width, marks)


def amount_bar(share: float) -> Html:
    """A bar from 0; `share` of the largest, 0 to 1."""
    width = _BAR[0]
    bar = element("rect", class_="cost", x=0, y=3, width=f"{share * width:.1f}", height=10)
    return _small(f"{share:.0%} of the largest", width, [bar])


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("line", class_=kind, x1=f"{x1:.1f}", y1=f"{y1:g}", x2=f"{x2:.1f}", y2=f"{y2:g}")


def _small(label: str, width: int, marks: Sequence[str]) -> Html:
    height = _BAR[1]
    settings = {"class": "bar", "role": "img", "viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return element("svg", element("title", label), *marks, aria_label=label, **settings)
