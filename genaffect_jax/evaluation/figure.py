"""One figure of an evaluation: value with interval, ceiling and floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genaffect_jax.metrics.bootstrap import Interval, bootstrap, mean_of, person_means


@dataclass(frozen=True)
class Figure:
    """One figure; `catalogue.ABOUT` says what it is."""

    value: Interval
    """Of the generated images."""
    ceiling: float
    """Of the true images of the same people and expressions; nan where there is none."""
    floor: float
    """Of a model that fails in the way that the figure is about; nan where none is defined."""
    by_person: tuple[float, ...] = ()
    """Of each person; nan for people without it. Empty for a figure that no person has alone."""


def mean_figure(seed: int, values: np.ndarray, ceiling: np.ndarray | float, floor: np.ndarray | float) -> Figure:
    """A figure that is the mean over people of numbers [P] or [P, V], as ceiling and floor are unless known.

    Args:
        seed: of the interval.
        values: of the generated images, one row for each person.
        ceiling, floor: numbers like `values`, or the figure itself.
    """

    def known(x: np.ndarray | float) -> float:
        return x if isinstance(x, float) else mean_of(x)(np.arange(len(x)))

    value = bootstrap(mean_of(values), len(values), seed=seed)
    return Figure(value, known(ceiling), known(floor), tuple(person_means(values).tolist()))
