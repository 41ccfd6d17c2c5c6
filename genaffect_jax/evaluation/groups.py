"""Groups of people by what the renderer knows of them: whom does a model serve worst?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from genaffect_jax.avatars import sample_identity
from genaffect_jax.evaluation.protocol import FIRST_PERSON
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


def attributes(person: int) -> dict[str, str]:
    """The attributes of a person of the protocol by which groups are made."""
    identity = sample_identity(FIRST_PERSON + person)
    return {
        "skin": ("light", "medium", "deep")[min(int(identity.skin_tone * 3), 2)],
        "age": "lined" if identity.wrinkles >= 0.4 else "smooth",
        "glasses": "no" if identity.glasses == "none" else "yes",
        "facial hair": "no" if identity.facial_hair == "none" else "yes",
        "freckles": "yes" if identity.freckles > 0 else "no",
        "hair": identity.hair_style,
        "background": identity.background,
    }


def worst_group(by_person: Float[np.ndarray, " P"], higher_is_better: bool, seed: int = 0) -> WorstGroup | None:
    """The group whose mean is furthest on the bad side.

    Args:
        by_person: a figure of every person, in the order of the protocol.
        higher_is_better: which side is bad.
        seed: of the interval.

    Returns:
        The group; None if no attribute divides the people into groups of at least `SMALLEST_GROUP`.
    """
    known = [attributes(person) for person in range(len(by_person))]
    worst: tuple[float, str, np.ndarray] | None = None
    for name in known[0]:
        values = np.array([one[name] for one in known])
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
