"""The report of an evaluation as one HTML page without other files."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genaffect_jax.config import SamplingConfig
from genaffect_jax.evaluation import plots
from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.cells import (
    AIM,
    NOT_MEASURED,
    WITH_WORST_PEOPLE,
    difference_cells,
    interval,
    number,
    worst_people,
)
from genaffect_jax.evaluation.comparison import Difference
from genaffect_jax.evaluation.figures import Evaluation, Figure
from genaffect_jax.evaluation.groups import SMALLEST_GROUP
from genaffect_jax.evaluation.markup import (
    Html,
    difference_bar,
    document,
    element,
    figure,
    joined,
    range_bar,
    table,
)
from genaffect_jax.evaluation.matrix import confusion_maps
from genaffect_jax.evaluation.protocol import word_names
from genaffect_jax.expressions.vocabulary import clusters

# Bytes of all sheets of a page, before they become a third longer as text; width of a sheet at most.
_SHEETS, _SHEET_WIDTH = 5_000_000, 1640
_PEOPLE = ("expression_error", "identity")


def as_html(
    evaluation: Evaluation, settings: dict[str, Any], out: Path, against: Mapping[str, Difference] | None = None
) -> str:
    """The page; the same evaluation gives the same text.

    Args:
        evaluation: what was found.
        settings: all that decides the figures, as in `report.json`.
        out: the folder of the evaluation; the sheets of the worst people are read there.
        against: differences to another report.
    """
    body = [element("h1", "Evaluation"), head(settings), *_figures(evaluation)]
    body += [*_people(evaluation), *_dials(evaluation), *_words(evaluation), *_groups(evaluation)]
    body += _worst(evaluation, out)
    if against is not None:
        body += _comparison(against)
    return document(f"Evaluation of {settings['model']}", *body, *_formulas(evaluation))


def head(settings: Mapping[str, Any]) -> Html:
    """All settings of a report, such as model, protocol and evaluators; of sampling, what is not usual."""
    entries = {
        name: _sampling(value) if name == "sampling" else _listed(value) if isinstance(value, Mapping) else [str(value)]
        for name, value in settings.items()
        if value is not None
    }
    return element(
        "dl",
        *(
            element("div", element("dt", name), *(element("dd", line) for line in lines))
            for name, lines in entries.items()
        ),
        class_="head",
    )


def _listed(values: Mapping[str, Any]) -> list[str]:
    """One line for each value; of a table inside, the number of its entries."""

    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return str(len(value))
        return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return [f"{key.replace('_', ' ')}: {shown(value)}" for key, value in values.items()]


def _sampling(sampling: Mapping[str, Any]) -> list[str]:
    """Steps, solver and seed, and what is not at its default."""
    usual = dataclasses.asdict(SamplingConfig())
    shown = {"steps", "solver", "seed"} | {
        key
        for key, value in sampling.items()
        if value != (list(usual[key]) if isinstance(usual.get(key), tuple) else usual.get(key))
    }
    return [*_listed({key: value for key, value in sampling.items() if key in shown}), "all else: defaults"]


def _figures(evaluation: Evaluation) -> list[Html]:
    rows = []
    for name in ABOUT:
        found, about = evaluation.figures.get(name), evaluation.about(name)
        title = joined([name, element("small", about.title)])
        if found is None:
            rows.append([title, AIM[about.better], NOT_MEASURED])
            continue
        value = joined([number(found.value.value), element("small", interval(found.value))])
        bar = range_bar(found.value, found.floor, found.ceiling)
        floor = joined([number(found.floor), element("small", about.floor, class_="wrap")])
        rows.append([title, AIM[about.better], value, floor, bar, number(found.ceiling)])
    header = ["figure", "better", "value, 95 % interval", "floor", "floor to ceiling", "ceiling"]
    return [
        element("h2", "Figures"),
        element(
            "p",
            "The ceiling is what true images of the same people and expressions reach; the floor, a model that fails "
            "in the way that the figure is about. Intervals are over people. Each line goes "
            "from the floor to the ceiling: the blue mark is the value, the pale band its interval, an arrowhead a "
            "value far beyond an end.",
            class_="muted",
        ),
        table(header, rows, numeric=(2, 3, 5), caption="Figures with intervals, ceilings and floors"),
    ]


def axis_label(name: str) -> str:
    """A figure's name and which way is better, in words."""
    aim = {
        "higher": "higher is better",
        "lower": "lower is better",
        "ceiling": "nearer to the ceiling is better",
        "neither": "neither way is better",
    }
    return f"{name.replace('_', ' ')} ({aim[ABOUT[name].better]})"


def _people(evaluation: Evaluation) -> list[Html]:
    title = element("h2", "Identity against expression")
    missing = [name for name in _PEOPLE if not _of_people(evaluation, name)]
    if missing:
        return [title, element("p", f"{', '.join(missing)}: {NOT_MEASURED}.")]
    x, y = (evaluation.figures[name] for name in _PEOPLE)
    worst = {one.person: one.name for name in WITH_WORST_PEOPLE for one in worst_people(evaluation, name)}
    names = tuple(worst.get(person, "") for person in range(len(x.by_person)))
    marks = [_mark("mean", x, y)]
    if np.isfinite([x.ceiling, y.ceiling]).all():
        marks.append(plots.Mark("mean of the true images", x.ceiling, y.ceiling, shape="D"))
    first, second = (plots.Axis(axis_label(name), evaluation.figures[name].by_person) for name in _PEOPLE)
    svg = plots.scatter(
        "people", "Identity against expression error of every person", first, second, marks, names=names
    )
    caption = "One dot is one person; the worst people of each figure have their names. Top left is better."
    return [title, figure(svg, caption)]


def _of_people(evaluation: Evaluation, name: str) -> bool:
    """Whether a figure is known of single people."""
    found = evaluation.figures.get(name)
    return found is not None and bool(np.isfinite(found.by_person).any())


def _mark(name: str, x: Figure, y: Figure) -> plots.Mark:
    ends = (x.value.low, x.value.high), (y.value.low, y.value.high)
    return plots.Mark(name, x.value.value, y.value.value, *ends)


def _dials(evaluation: Evaluation) -> list[Html]:
    title = element("h2", "Dials")
    if not evaluation.dials:
        return [title, element("p", "Dials were not measured.")]
    caption = (
        "Means over people. The amount is the share of the change from neutral to the full word that is read; in the "
        "true images it is 0 at intensity 0 and 1 at 1 by definition."
    )
    return [title, figure(plots.dial_curves(evaluation.dials), caption)]


def _words(evaluation: Evaluation) -> list[Html]:
    title = element("h2", "Confused words")
    if np.isnan(evaluation.word_shares).all():
        return [title, element("p", "Words were not measured.")]
    svg = confusion_maps(evaluation.word_shares, evaluation.true_word_shares, word_names(), clusters())
    rows = [[c.wanted, c.read, f"{c.share:.2f}", f"{true:.2f}"] for c, true in evaluation.confusions]
    header = ["wanted", "read as", "share", "in true images"]
    pairs = (
        table(header, rows, numeric=(2, 3), caption="Words that are most often read as others", narrow=True)
        if rows
        else element("p", "No word was read as another.")
    )
    caption = (
        "Rows are the wanted words, columns the words whose vectors are nearest to what was read, both in the "
        "vocabulary's order. The pointer over a cell shows its words. Confusions in true images are the encoder's own. "
        "Grey rows were not asked for."
    )
    return [title, figure(svg, caption), pairs]


def _groups(evaluation: Evaluation) -> list[Html]:
    panels = {
        axis_label(name): evaluation.figures[name].by_person
        for name in reversed(_PEOPLE)
        if _of_people(evaluation, name)
    }
    svg = plots.group_strips(evaluation.attributes, panels, SMALLEST_GROUP)
    title = element("h2", "Groups of people")
    if svg is None:
        return [title, element("p", "No attributes of these people are known, or no figure of single people.")]
    caption = (
        "One dot is one person. The number of people is in brackets; a bar is the mean of a group of at least "
        f"{SMALLEST_GROUP}, the dashed line the mean of all."
    )
    parts = [title, figure(svg, caption)]
    rows = [
        [name, one.group, str(one.people), number(one.value), f"{one.difference.value:+.3f}", interval(one.difference)]
        for name, one in evaluation.worst_groups.items()
    ]
    if rows:
        header = ["figure", "worst group", "people", "mean", "less all others", "95 % interval"]
        parts.append(table(header, rows, numeric=(2, 3, 4, 5), caption="The worst group of each figure"))
        note = "With many groups one of them is apart by chance: an interval that just excludes 0 says little."
        parts.append(element("p", note, class_="muted"))
    return parts


def _worst(evaluation: Evaluation, out: Path) -> list[Html]:
    lists = {name: worst_people(evaluation, name) for name in WITH_WORST_PEOPLE}
    people = {one.person: one for worst in lists.values() for one in worst}
    rows = [
        [
            name,
            joined(
                [joined([element("a", o.name, href=f"#person-{o.person}"), f" {o.value:.3f}"]) for o in worst], ", "
            ),
        ]
        for name, worst in lists.items()
        if worst
    ]
    parts = [element("h2", "Worst people")]
    if not rows:
        return [*parts, element("p", "No figure of single people was measured.")]
    parts.append(table(["figure", "people, the worst first"], rows, caption="The worst people of each figure"))
    parts.append(element("p", "Generated images, the true image of each below it.", class_="muted"))
    for person, one in people.items():
        values = [
            f"{name} {number(evaluation.figures[name].by_person[person])}" for name, worst in lists.items() if worst
        ]
        caption = f"{one.name}: {', '.join(values)}"
        data = sheet_data(out / one.sheet, _SHEETS // len(people))
        if data is None:
            shown = element("p", f"{one.sheet} is not there or not readable.")
        else:
            shown = element("img", src=data, alt=f"Sheet of {one.name}: generated images above true ones")
        parts.append(element("figure", element("figcaption", caption), shown, id=f"person-{person}", class_="sheet"))
    return parts


def sheet_data(path: Path, most: int) -> str | None:
    """An image file as a data URI: a JPEG, shrunk as far as `most` bytes need.

    Returns:
        The URI; None if the file is missing or damaged.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # Pillow's errors for damaged files
        return None
    width = min(image.width, _SHEET_WIDTH)
    while True:
        size = (width, max(1, round(image.height * width / image.width)))
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        content = io.BytesIO()
        # Full colour resolution: the avatars' flat colours would bleed. Without `optimize`, with which Pillow sets
        # aside one byte per pixel and fails for images that need more.
        small.save(content, format="JPEG", quality=85, subsampling=0)
        if content.tell() <= most or width < 64:
            return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        width = int(width * 0.85)


def _comparison(against: Mapping[str, Difference]) -> list[Html]:
    rows = [
        [*cells[:4], difference_bar(found.difference), *cells[4:]]
        for cells, found in zip(difference_cells(against), against.values(), strict=True)
    ]
    header = ["figure", "here", "there", "difference", "beside 0", "95 % interval", "beyond noise"]
    pairing = [found.paired for found in against.values()]
    how = "Both reports are of the same people and expressions, compared one by one."
    if not all(pairing):
        how = "The reports are of other people or expressions; their means are compared."
    return [
        element("h2", "Against the other report"),
        element("p", f"{how} Each bar has a scale of its own.", class_="muted"),
        table(header, rows, numeric=(1, 2, 3, 5), caption="Differences to the other report"),
    ]


def _formulas(evaluation: Evaluation) -> list[Html]:
    rows = [[name, about.formula, about.source] for name in ABOUT for about in [evaluation.about(name)]]
    return [
        element("h2", "How the figures are computed"),
        table(["figure", "formula", "source"], rows, caption="Formulas and sources"),
    ]
