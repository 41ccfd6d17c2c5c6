"""Bootstrap intervals over people: how far a figure would move with other people of the same kind.

The percentile bootstrap of Efron and Tibshirani (An Introduction to the Bootstrap, 1993, chapter 13). People are drawn,
not images: the images of one person are no independent observations. A figure that depends on how many different
people there are gets the interval of the jackknife (chapter 11). NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

Statistic = Callable[[Int[np.ndarray, " K"]], float]
"""The figure of people, given by their places; a place may occur several times."""


@dataclass(frozen=True)
class Interval:
    """A figure and its interval."""

    value: float
    """Of all people."""
    low: float
    """Lower end; nan if there are fewer than two people, or no resample has the figure."""
    high: float
    """Upper end; nan as `low`."""
    people: int
    """Number of people."""
    level: float
    """Probability that the ends are meant to hold."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; of a difference: whether it is beyond noise. False if the ends are nan."""
        return self.low > 0 or self.high < 0


def bootstrap(
    statistic: Statistic, people: int, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The figure of all people with its interval; equal for equal seeds.

    Args:
        statistic: the figure of some people.
        people: number of people, at least 1.
        seed: of the resampling.
        resamples: how often as many people are drawn with replacement.
        level: as in `Interval`, between 0 and 1.

    Raises:
        ValueError: no people, no resamples, or a level outside of (0, 1).
    """
    if people < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap: {people} people, {resamples} resamples, level {level}")
    value = float(statistic(np.arange(people)))
    if people < 2:
        return Interval(value, float("nan"), float("nan"), people, level)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(people, size=people)) for _ in range(resamples)])
    # A resample can be without what the figure needs (a group, a word): it says nothing about the others.
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"), people, level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), people, level)


def jackknife(statistic: Statistic, people: int, *, level: float = 0.95) -> Interval:
    """The figure of all people with a normal interval, from its values without one person each.

    For figures that a bootstrap biases. A distance of distributions is larger the fewer people it is of, and people
    who are drawn with replacement are fewer; all but one are nearly as many as all.

    Args:
        statistic: the figure of some people.
        people: number of people, at least 1.
        level: between 0 and 1.

    Raises:
        ValueError: no people, or a level outside of (0, 1).
    """
    if people < 1 or not 0 < level < 1:
        raise ValueError(f"jackknife: {people} people, level {level}")
    value = float(statistic(np.arange(people)))
    if people < 3:
        return Interval(value, float("nan"), float("nan"), people, level)
    without = np.array([statistic(np.delete(np.arange(people), person)) for person in range(people)])
    error = np.sqrt((people - 1) / people * np.square(without - without.mean()).sum())
    reach = NormalDist().inv_cdf((1 + level) / 2) * float(error)
    return Interval(value, value - reach, value + reach, people, level)


def person_means(values: Float[np.ndarray, "P ..."]) -> Float[np.ndarray, " P"]:
    """Each person's mean; nan entries are not counted, and a person with nothing else has nan."""
    counted = np.isfinite(values).reshape(len(values), -1)
    sums = np.where(counted, values.reshape(len(values), -1), 0.0).sum(1)
    with np.errstate(invalid="ignore"):
        return sums / counted.sum(1)


def mean_of(values: Float[np.ndarray, "P ..."]) -> Statistic:
    """The mean of `person_means`; people who have none are left out."""
    means = person_means(values)

    def statistic(places: Int[np.ndarray, " K"]) -> float:
        chosen = means[places]
        chosen = chosen[np.isfinite(chosen)]
        return float(chosen.mean()) if len(chosen) else float("nan")

    return statistic


def unpaired_difference(
    first: Float[np.ndarray, " P"], second: Float[np.ndarray, " Q"], seed: int = 0, resamples: int = 2000
) -> Interval:
    """The mean of `first` less that of `second`, figures of different people, with its interval at 95 %."""
    means = mean_of(first), mean_of(second)
    sizes = len(first), len(second)
    value = means[0](np.arange(sizes[0])) - means[1](np.arange(sizes[1]))
    rng = np.random.default_rng(seed)
    drawn = np.array([
        means[0](rng.integers(sizes[0], size=sizes[0])) - means[1](rng.integers(sizes[1], size=sizes[1]))
        for _ in range(resamples)
    ])  # fmt: skip
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) and min(sizes) > 1 else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high), min(sizes), 0.95)


def paired_difference(first: Float[np.ndarray, " P"], second: Float[np.ndarray, " P"], seed: int = 0) -> Interval:
    """The mean of `first - second`, figures of the same people, with its interval.

    Raises:
        ValueError: the numbers of people differ, or there are none.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired_difference: {len(first)} and {len(second)} people")
    return bootstrap(mean_of(first - second), len(first), seed=seed)
