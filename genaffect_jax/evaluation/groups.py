"""Groups of people by their attributes: whom does a model serve worst?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from genaffect_jax.metrics.bootstrap import Interval, unpaired_difference

# Smaller groups are not looked at: their means are noise.
SMALLEST_GROUP = 4


@dataclass(frozen=True)
class WorstGroup:
    """The group with the worst mean of a figure."""

    group: str
    """Attribute and value, such as `glasses: yes`."""
    people: int
    """People in the group."""
    value: float
    """Their mean."""
    difference: Interval
    """Their mean less that of all others. With many groups one of them is apart by chance: an end close to 0 says
    little."""


def worst_group(
    by_person: Float[np.ndarray, " P"],
    attributes: Sequence[Mapping[str, str]],
    higher_is_better: bool,
    seed: int = 0,
) -> WorstGroup | None:
    """The group whose mean is furthest on the bad side.

    Args:
        by_person: a figure of every person.
        attributes: those of every person, with the same names; without names there is no group.
        higher_is_better: which side is bad.
        seed: of the interval.

    Returns:
        The group; None if no attribute divides the people into groups of at least `SMALLEST_GROUP`.
    """
    worst: tuple[float, str, np.ndarray] | None = None
    for name in attributes[0]:
        values = np.array([one[name] for one in attributes])
        for value in sorted(set(values.tolist())):
            inside = (values == value) & np.isfinite(by_person)
            if not SMALLEST_GROUP <= inside.sum() <= np.isfinite(by_person).sum() - SMALLEST_GROUP:
                continue
            badness = float(by_person[inside].mean()) * (-1 if higher_is_better else 1)
            if worst is None or badness > worst[0]:
                worst = badness, f"{name}: {value}", inside
    if worst is None:
        return None
    _, group, inside = worst
    others = ~inside & np.isfinite(by_person)
    difference = unpaired_difference(by_person[inside], by_person[others], seed)
    return WorstGroup(group, int(inside.sum()), float(by_person[inside].mean()), difference)
