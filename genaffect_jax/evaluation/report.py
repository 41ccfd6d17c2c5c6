"""The report of an evaluation: a table for the terminal, `report.json`, `report.md` and `report.html`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.cells import (
    AIM,
    NOT_MEASURED,
    WITH_WORST_PEOPLE,
    difference_cells,
    figure_cells,
    interval,
    number,
    worst_people,
)
from genaffect_jax.evaluation.comparison import REPORT, Difference
from genaffect_jax.evaluation.figures import Evaluation
from genaffect_jax.evaluation.groups import SMALLEST_GROUP
from genaffect_jax.evaluation.page import as_html
from genaffect_jax.io.atomic import write_atomically


def write_report(
    evaluation: Evaluation, settings: dict[str, Any], out: Path, against: Mapping[str, Difference] | None = None
) -> None:
    """Writes `report.json`, `report.md` and `report.html` into a folder, each whole or not at all.

    Args:
        evaluation: what was found.
        settings: all that decides the figures, as in `report.json`.
        out: the folder of the evaluation, with the sheets of its people.
        against: differences to another report; they go to the pages only.
    """
    write_atomically(out / REPORT, json.dumps(as_json(evaluation, settings), indent=2) + "\n")
    compared = "" if against is None else "\n" + comparison_as_markdown(against)
    write_atomically(out / "report.md", as_markdown(evaluation, settings) + compared)
    write_atomically(out / "report.html", as_html(evaluation, settings, out, against))


def as_json(evaluation: Evaluation, settings: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON; what was not measured is null, and so are ends and bounds that there are none of."""
    figures = {
        name: {
            **dataclasses.asdict(evaluation.about(name)),
            "value": None if figure is None else dataclasses.asdict(figure.value),
            "ceiling": None if figure is None else figure.ceiling,
            "floor_value": None if figure is None else figure.floor,
            "by_person": None if figure is None else figure.by_person,
        }
        for name in ABOUT
        for figure in [evaluation.figures.get(name)]
    }
    report = {
        "settings": settings,
        "figures": figures,
        "confusions": [
            {**dataclasses.asdict(pair), "share_in_true_images": true} for pair, true in evaluation.confusions
        ],
        "worst_groups": {name: dataclasses.asdict(group) for name, group in evaluation.worst_groups.items()},
        "dials": {word: dataclasses.asdict(dial) for word, dial in evaluation.dials.items()},
    }
    return _without_nan(report)


def as_markdown(evaluation: Evaluation, settings: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# Evaluation",
        "",
        f"Model: {settings['model']}. {settings['people']} Identity is read by {_reader(settings, 'identity')}, "
        f"expressions by {_reader(settings, 'expression')}. Intervals are 95 % intervals over people.",
        *_measured_if_asked_for(settings),
        "",
        "| figure | | value | interval | ceiling (true images) | floor | floor is |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(figure_cells(evaluation, name))} |" for name in ABOUT]
    lines += ["", "## Worst groups", ""]
    if evaluation.worst_groups:
        lines += ["| figure | group | people | value | less the others | interval |", "|---|---|---|---|---|---|"]
    else:
        lines += [f"None: nothing divides these people into groups of at least {SMALLEST_GROUP}."]
    lines += [
        f"| {name} | {group.group} | {group.people} | {number(group.value)} | {number(group.difference.value)} | "
        f"{interval(group.difference)} |"
        for name, group in evaluation.worst_groups.items()
    ]
    lines += ["", "## Worst people", "", "| figure | people, the worst first |", "|---|---|"]
    for name in WITH_WORST_PEOPLE:
        people = [f"[{one.name}]({one.sheet}) {one.value:.3f}" for one in worst_people(evaluation, name)]
        lines.append(f"| {name} | {', '.join(people) or NOT_MEASURED} |")
    lines += ["", "## Confused words", "", "| wanted | read as | share | in true images |", "|---|---|---|---|"]
    lines += [f"| {c.wanted} | {c.read} | {c.share:.2f} | {true:.2f} |" for c, true in evaluation.confusions]
    for word, dial in evaluation.dials.items():
        rows = {"generated": dial.generated, "true": dial.true, "cosine to the reference": dial.cosine_to_reference}
        lines += ["", f"## Dial of {word}", "", f"| {' | '.join(['', *map(str, dial.intensities)])} |"]
        lines += ["|---" * (len(dial.intensities) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(f'{v:.2f}' for v in row)} |" for name, row in rows.items() if row]
    lines += ["", "## How the figures are computed", "", "| figure | formula | source |", "|---|---|---|"]
    lines += [
        f"| {name} | {about.formula.replace('|', chr(92) + '|')} | {about.source} |"
        for name, about in ((name, evaluation.about(name)) for name in ABOUT)
    ]
    return "\n".join(lines) + "\n"


def _reader(settings: dict[str, Any], kind: str) -> str:
    """Name and checksum of an evaluator, and what it does to an image first."""
    return f"{settings['evaluators'][kind]} ({settings['preprocessing'][kind]})"


def _measured_if_asked_for(settings: dict[str, Any]) -> list[str]:
    """A line for each setting of `catalogue.MEASURED_WITH` that is on."""
    lines = [
        f"{name} is computed by {settings[setting]}."
        for name, setting in (("clip_score", "clip"), ("dino_consistency", "dino"))
        if settings.get(setting)
    ]
    if diversity := settings.get("diversity"):
        people = min(diversity["people"], settings["protocol"]["people"])
        lines.append(
            f"Figures of seeds are of {people} people, each with the same words under {diversity['seeds']} seeds."
        )
    return [line for text in lines for line in ("", text)]


def comparison_as_markdown(against: Mapping[str, Difference]) -> str:
    """Differences to another report as a section of the page."""
    lines = ["## Against the other report", "", "| figure | here | there | difference | interval | beyond noise |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in difference_cells(against)]
    return "\n".join(lines) + "\n"


def comparison_as_table(against: Mapping[str, Difference]) -> Table:
    """Differences to another report as a table for the terminal."""
    table = Table("figure", "here", "there", "difference", "95 % interval", "beyond noise")
    for cells in difference_cells(against):
        table.add_row(*cells)
    return table


def as_table(evaluation: Evaluation) -> Table:
    """The figures as a table for the terminal."""
    table = Table("figure", "value", "95 % interval", "ceiling", "floor")
    for name, about in ABOUT.items():
        _, _, *numbers, _ = figure_cells(evaluation, name)
        table.add_row(f"{name} {AIM[about.better]}", *numbers)
    return table


def _without_nan(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
