"""The report of an evaluation: a table for the terminal, `report.json` and `report.md`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.comparison import REPORT, Difference
from genaffect_jax.evaluation.figures import Evaluation
from genaffect_jax.evaluation.groups import SMALLEST_GROUP
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.metrics.bootstrap import Interval

NOT_MEASURED = "not measured"
# Figures whose worst people are shown, and how many.
_WITH_WORST_PEOPLE, _WORST_PEOPLE = ("identity", "expression_error"), 4
# Which way a figure is better.
AIM = {"higher": "↑", "lower": "↓", "ceiling": "→ ceiling", "neither": "(no aim)"}


def write_report(
    evaluation: Evaluation, settings: dict[str, Any], out: Path, against: Mapping[str, Difference] | None = None
) -> None:
    """Writes `report.json` and `report.md` into a folder, each whole or not at all; `against` goes to the page only."""
    write_atomically(out / REPORT, json.dumps(as_json(evaluation, settings), indent=2) + "\n")
    compared = "" if against is None else "\n" + comparison_as_markdown(against)
    write_atomically(out / "report.md", as_markdown(evaluation, settings) + compared)


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
        f"Model: {settings['model']}. {settings['people']} Identity is read by "
        f"{settings['evaluators']['identity']}, expressions by {settings['evaluators']['expression']}. Intervals are "
        "95 % bootstrap intervals over people.",
        *_measured_if_asked_for(settings),
        "",
        "| figure | | value | interval | ceiling (true images) | floor | floor is |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(_cells(name, evaluation))} |" for name in ABOUT]
    lines += ["", "## Worst groups", ""]
    if evaluation.worst_groups:
        lines += ["| figure | group | people | value | less the others | interval |", "|---|---|---|---|---|---|"]
    else:
        lines += [f"None: nothing divides these people into groups of at least {SMALLEST_GROUP}."]
    lines += [
        f"| {name} | {group.group} | {group.people} | {_number(group.value)} | {_number(group.difference.value)} | "
        f"{_interval(group.difference)} |"
        for name, group in evaluation.worst_groups.items()
    ]
    lines += ["", "## Worst people", "", "| figure | people, the worst first |", "|---|---|"]
    lines += [f"| {name} | {_worst_people(name, evaluation)} |" for name in _WITH_WORST_PEOPLE]
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
    lines += [f"| {' | '.join(cells)} |" for cells in _differences(against)]
    return "\n".join(lines) + "\n"


def comparison_as_table(against: Mapping[str, Difference]) -> Table:
    """Differences to another report as a table for the terminal."""
    table = Table("figure", "here", "there", "difference", "95 % interval", "beyond noise")
    for cells in _differences(against):
        table.add_row(*cells)
    return table


def _differences(against: Mapping[str, Difference]) -> list[list[str]]:
    return [
        [
            *(f"{name} {AIM[ABOUT[name].better]}", _number(found.here), _number(found.there)),
            *(f"{found.difference.value:+.3f}", _interval(found.difference), "yes" if found.beyond_noise else "no"),
        ]
        for name, found in against.items()
    ]


def as_table(evaluation: Evaluation) -> Table:
    """The figures as a table for the terminal."""
    table = Table("figure", "value", "95 % interval", "ceiling", "floor")
    for name, about in ABOUT.items():
        _, _, *numbers, _ = _cells(name, evaluation)
        table.add_row(f"{name} {AIM[about.better]}", *numbers)
    return table


def _cells(name: str, evaluation: Evaluation) -> list[str]:
    figure, about = evaluation.figures.get(name), evaluation.about(name)
    title = f"{about.title} {AIM[about.better]}"
    if figure is None:
        return [name, title, NOT_MEASURED, "", "", "", about.floor]
    return [
        *(name, title, _number(figure.value.value), _interval(figure.value)),
        *(_number(figure.ceiling), _number(figure.floor), about.floor),
    ]


def _worst_people(name: str, evaluation: Evaluation) -> str:
    """The people with the worst values, with links to their sheets."""
    sign, values = -1 if ABOUT[name].better == "higher" else 1, evaluation.figures[name].by_person
    known = [(sign * value, value, person) for person, value in enumerate(values) if not math.isnan(value)]
    worst = sorted(known, reverse=True)[:_WORST_PEOPLE]
    names = evaluation.names
    return ", ".join(f"[{names[person]}](people/{person:04d}.png) {value:.3f}" for _, value, person in worst)


def _interval(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"{_number(interval.low)} to {_number(interval.high)}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
