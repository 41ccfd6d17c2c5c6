"""The ablations of sampling as one HTML page without other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genaffect_jax.evaluation import plots
from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.cells import AIM, NOT_MEASURED
from genaffect_jax.evaluation.markup import Html, amount_bar, document, element, figure, joined, table
from genaffect_jax.evaluation.page import axis_label, head

if TYPE_CHECKING:
    from genaffect_jax.evaluation.ablations import Ablation
    from genaffect_jax.evaluation.comparison import Difference

# The trade-offs that are plotted: the figure along and the figure upwards.
_SCATTERS = {
    "Identity against expression error": ("expression_error", "identity"),
    "Set consistency against expression gain": ("expression_gain", "set_consistency"),
}


def ablations_as_html(ablations: Mapping[str, Ablation], columns: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The page; the same ablations give the same text.

    Args:
        ablations: the settings by name, the plain one first.
        columns: figures of the table.
        settings: those of the plain setting's report.
    """
    body = [element("h1", "Ablations"), head(settings), *_figures(ablations, columns)]
    for title, (along, upwards) in _SCATTERS.items():
        body += _scatter(ablations, title, along, upwards)
    return document(f"Ablations of {settings['model']}", *body, *_costs(ablations))


def _figures(ablations: Mapping[str, Ablation], columns: Sequence[str]) -> list[Html]:
    header = [
        "setting",
        *(
            joined([joined(name.split("_"), Html("_<wbr>")), element("small", AIM[ABOUT[name].better])])
            for name in columns
        ),
    ]
    rows = []
    for place, (name, ablation) in enumerate(ablations.items()):
        found = [(column, ablation.differences.get(column)) for column in columns]
        rows.append([name, *(NOT_MEASURED if one is None else _cell(column, one, place > 0) for column, one in found)])
    plain = next(iter(ablations))
    return [
        element("h2", "Figures"),
        element(
            "p",
            f"Same people, expressions and seeds. Below each value is its difference from {plain}. A star marks "
            "a difference whose 95 % interval, over the same people, excludes 0; it is blue if it is to the better, "
            "orange if to the worse. One in twenty comparisons without a difference gets a star by chance.",
            class_="muted",
        ),
        table(header, rows, numeric=range(1, len(header)), caption="Figures of every setting"),
    ]


def _cell(name: str, found: Difference, other: bool) -> Html:
    """A value, and below it the difference of another setting than the plain one."""
    if not other:
        return joined([f"{found.here:.3f}"])
    change = f"{found.difference.value:+.3f}"
    if not found.beyond_noise:
        return joined([f"{found.here:.3f}", element("small", change)])
    better = {"higher": found.difference.value > 0, "lower": found.difference.value < 0}.get(ABOUT[name].better)
    kind = None if better is None else "better" if better else "worse"
    return joined([element("strong", f"{found.here:.3f}"), element("small", f"{change} *", class_=kind)])


def _scatter(ablations: Mapping[str, Ablation], title: str, along: str, upwards: str) -> list[Html]:
    both = {
        name: (one.differences[along], one.differences[upwards])
        for name, one in ablations.items()
        if along in one.differences and upwards in one.differences
    }
    if not both:
        return [element("h2", title), element("p", f"{along}, {upwards}: {NOT_MEASURED}.")]
    plain = next(iter(ablations))
    marks = [
        plots.Mark(
            name,
            x.here,
            y.here,
            _ends(x),
            _ends(y),
            strong=x.beyond_noise or y.beyond_noise or name == plain,
            shape="D" if name == plain else "o",
        )
        for name, (x, y) in both.items()
    ]
    x_axis, y_axis = (plots.Axis(axis_label(name), ()) for name in (along, upwards))
    cross = (both[plain][0].here, both[plain][1].here) if plain in both else None
    svg = plots.scatter(
        f"{along}-{upwards}", f"{title} of every setting", x_axis, y_axis, marks, cross=cross, height=520
    )
    caption = (
        f"The diamond and the dashed lines are the setting {plain}. A line through a mark is the 95 % interval of "
        "its difference from there, over the same people. A hollow mark differs in neither figure by more than noise."
    )
    return [element("h2", title), figure(svg, caption)]


def _ends(found: Difference) -> tuple[float, float]:
    """The interval of the difference, around the setting's own value."""
    start = found.here - found.difference.value
    return start + found.difference.low, start + found.difference.high


def _costs(ablations: Mapping[str, Ablation]) -> list[Html]:
    known = [one.seconds for one in ablations.values() if one.seconds is not None]
    largest, plain = max(known, default=0.0), next(iter(ablations.values())).seconds
    rows = []
    for name, one in ablations.items():
        if one.seconds is None:
            rows.append([name, NOT_MEASURED])
            continue
        times = f"{one.seconds / plain:.2f}" if plain else "-"
        rows.append([name, f"{one.seconds:.2f}", times, amount_bar(one.seconds / largest if largest else 0.0)])
    header = ["setting", "s a person", f"times {next(iter(ablations))}", ""]
    return [
        element("h2", "Cost"),
        element("p", "Sampling time of a person's images, on the machine of this evaluation.", class_="muted"),
        table(header, rows, numeric=(1, 2), narrow=True, caption="Sampling time of every setting"),
    ]
