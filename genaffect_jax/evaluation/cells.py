"""Figures of an evaluation as text, for every form of the report: numbers, intervals, arrows, worst people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.comparison import Difference
from genaffect_jax.evaluation.figures import Evaluation
from genaffect_jax.metrics.bootstrap import Interval

NOT_MEASURED = "not measured"
# Figures whose worst people are shown, and how many.
WITH_WORST_PEOPLE, _WORST_PEOPLE = ("identity", "expression_error"), 4
# Which way a figure is better.
AIM = {"higher": "↑", "lower": "↓", "ceiling": "→\N{NO-BREAK SPACE}ceiling", "neither": "(no aim)"}


@dataclass(frozen=True)
class WorstPerson:
    """One of the people with the worst values of a figure."""

    person: int
    """Place among the people."""
    name: str
    """What the pipeline calls the person."""
    value: float
    """The person's figure."""

    @property
    def sheet(self) -> str:
        """The person's sheet, relative to the folder of the evaluation."""
        return f"people/{self.person:04d}.png"


def worst_people(evaluation: Evaluation, name: str) -> list[WorstPerson]:
    """The people with the worst values of a figure, the worst first; none if it was not measured."""
    figure = evaluation.figures.get(name)
    by_person = () if figure is None else figure.by_person
    sign = -1 if ABOUT[name].better == "higher" else 1
    known = [(sign * value, person) for person, value in enumerate(by_person) if not math.isnan(value)]
    worst = sorted(known, reverse=True)[:_WORST_PEOPLE]
    return [WorstPerson(person, evaluation.names[person], sign * value) for value, person in worst]


def number(value: float) -> str:
    """Three decimals; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def interval(found: Interval) -> str:
    """Both ends; nothing if there are none."""
    return "" if math.isnan(found.low) else f"{number(found.low)} to {number(found.high)}"


def figure_cells(evaluation: Evaluation, name: str) -> list[str]:
    """Name, title, value, interval, ceiling, floor, and what the floor is."""
    figure, about = evaluation.figures.get(name), evaluation.about(name)
    title = f"{about.title} {AIM[about.better]}"
    if figure is None:
        return [name, title, NOT_MEASURED, "", "", "", about.floor]
    return [
        *(name, title, number(figure.value.value), interval(figure.value)),
        *(number(figure.ceiling), number(figure.floor), about.floor),
    ]


def difference_cells(against: Mapping[str, Difference]) -> list[list[str]]:
    """Of each difference: figure, here, there, difference, interval, and whether it is beyond noise."""
    return [
        [
            *(f"{name} {AIM[ABOUT[name].better]}", number(found.here), number(found.there)),
            *(f"{found.difference.value:+.3f}", interval(found.difference), "yes" if found.beyond_noise else "no"),
        ]
        for name, found in against.items()
    ]
