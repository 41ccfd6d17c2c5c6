"""One figure of an evaluation: value with interval, ceiling and floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Shaped

from genaffect_jax.evaluation.catalogue import About
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
    other: About | None = None
    """What it is, if it is computed otherwise than `catalogue.ABOUT` says."""

    def described_as(self, about: About) -> Figure:
        """The same numbers with a description of their own."""
        return replace(self, other=about)


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


def padded(values: Sequence[np.ndarray], filler: float = float("nan")) -> Shaped[np.ndarray, "P V *F"]:
    """Arrays of different lengths in one, filled up at their ends."""
    longest = max(len(one) for one in values)
    widths = [[(0, longest - len(one))] + [(0, 0)] * (one.ndim - 1) for one in values]
    return np.stack([
        np.pad(one, width, constant_values=filler) if len(one) < longest else one
        for one, width in zip(values, widths, strict=True)
    ])  # fmt: skip
