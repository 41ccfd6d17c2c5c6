"""Diversity over seeds: how much a person with one expression varies where only the noise is another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from genaffect_jax.errors import require
from genaffect_jax.evaluation.catalogue import OTHER_VECTORS
from genaffect_jax.evaluation.figure import Figure, mean_figure, padded
from genaffect_jax.evaluation.readings import Evaluators, Readings
from genaffect_jax.expressions.action_units import WIDTH
from genaffect_jax.metrics.diversity import mean_pairwise_difference, pixel_deviation
from genaffect_jax.metrics.identity import mean_cosine

# Words of a person that are sampled under every seed.
_WORDS = 4
_NAN = float("nan")


@dataclass(frozen=True)
class Diversity:
    """Who is sampled under how many seeds."""

    people: int = 8
    """People of the protocol, from the first on, at least 1; all if the protocol has fewer."""
    seeds: int = 4
    """Seeds, at least 2: that of the sampling and the next ones."""

    def __post_init__(self) -> None:
        require(self.people >= 1, "diversity_people", self.people, "must be at least 1, or 0 to leave it out")
        require(self.seeds >= 2, "diversity_seeds", self.seeds, "must be at least 2, or 0 to leave it out")

    @staticmethod
    def places(expressions: int) -> Int[np.ndarray, " S"]:
        """Places, in a person's list of so many expressions, of those that are sampled: up to four, evenly spread."""
        count = min(_WORDS, expressions)
        return np.arange(count) * (expressions // count)


def with_seeds(readings: Readings, evaluators: Evaluators, images: UInt8[np.ndarray, "S N H H 3"]) -> Readings:
    """A person's readings with what the evaluators read in the images of each word under all seeds.

    Args:
        readings: of the person.
        evaluators: the encoders.
        images: of the words at `Diversity.places`, each under N seeds.
    """
    # One call for each word: equal images that one program reads give equal vectors, to the bit.
    identity, expression = (
        np.stack([encoder(of_word) for of_word in images]) for encoder in (evaluators.identity, evaluators.expression)
    )
    return dataclasses.replace(
        readings,
        seed_places=Diversity.places(len(readings.words)),
        seed_identity=identity,
        seed_expression=expression,
        seed_deviation=np.array([pixel_deviation(of_word) for of_word in images]),
    )


def diversity_figures(people: Sequence[Readings], seed: int = 0) -> dict[str, Figure]:
    """The figures of the people that were sampled under several seeds; none if there are none.

    A true image does not depend on a seed, which is the ceiling: one embedding, one expression, one image. The floors
    are true images too: of different people (of all in the protocol), and of a person's different expressions.

    Args:
        people: the readings of every person of the protocol.
        seed: of the intervals.
    """
    sampled = [p for p in people if len(p.seed_places)]
    if not sampled:
        return {}
    identity = padded([np.array([mean_cosine(word[None]) for word in p.seed_identity]) for p in sampled])
    expression = padded([100.0 * mean_pairwise_difference(p.seed_expression) for p in sampled])
    deviation = padded([p.seed_deviation for p in sampled])
    most = max((p.seed_places for p in sampled), key=len)
    strangers = np.stack([p.true_identity[most % len(p.words)] for p in people], axis=1)
    others = np.array([
        mean_pairwise_difference(p.true_expression[p.seed_places]) if len(p.seed_places) > 1 else _NAN for p in sampled
    ])  # fmt: skip
    figures = {
        "seed_identity": mean_figure(seed, identity, 1.0, mean_cosine(strangers)),
        "seed_expression": mean_figure(seed, expression, 0.0, 100.0 * others),
        "seed_pixels": mean_figure(seed, deviation, 0.0, _NAN),
    }
    if sampled[0].expression.shape[-1] != WIDTH:
        figures["seed_expression"] = figures["seed_expression"].described_as(OTHER_VECTORS["seed_expression"])
    return figures
