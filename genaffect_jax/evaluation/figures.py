"""The figures of an evaluation, from what was read of every person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.diversity import diversity_figures
from genaffect_jax.evaluation.figure import Figure, mean_figure
from genaffect_jax.evaluation.groups import WorstGroup, attributes, worst_group
from genaffect_jax.evaluation.protocol import INTENSITIES, Protocol, word_names, word_vectors
from genaffect_jax.evaluation.readings import Readings
from genaffect_jax.evaluation.similarity import similarity_figures
from genaffect_jax.metrics.bootstrap import jackknife
from genaffect_jax.metrics.copying import copy_scores
from genaffect_jax.metrics.dial import dial_figures, read_amounts
from genaffect_jax.metrics.expression import relative_gain
from genaffect_jax.metrics.identity import mean_cosine
from genaffect_jax.metrics.image_quality import frechet_distance
from genaffect_jax.metrics.words import Confusion, confusion_matrix, most_confused, retrieval, word_ranks

_NAN = float("nan")
# Figures whose worst group of people is looked for.
_BY_GROUP = ("identity", "expression_error", "expression_gain")


@dataclass(frozen=True)
class Dial:
    """The mean dial of one word; one number for each intensity."""

    intensities: tuple[float, ...]
    """What was asked for."""
    generated: tuple[float, ...]
    """Amounts that were read in generated images."""
    true: tuple[float, ...]
    """Amounts that were read in true images."""
    cosine_to_reference: tuple[float, ...]
    """Cosine of the identity embeddings of generated image and reference."""


@dataclass(frozen=True)
class Evaluation:
    """All that was found."""

    figures: dict[str, Figure]
    """By the names of `catalogue.ABOUT`; without dials, theirs are not measured and not there."""
    confusions: tuple[tuple[Confusion, float], ...]
    """Words that are read as others, the most frequent first, each with the share of the true images that are read so:
    what the encoder itself confuses."""
    dials: dict[str, Dial]
    """By word."""
    worst_groups: dict[str, WorstGroup]
    """By the names of the figures that are compared over groups of people."""
    attributes: tuple[Mapping[str, str], ...]
    """Of each person, what groups are made by."""
    word_shares: Float[np.ndarray, "K K"] = field(compare=False)
    """`metrics.words.confusion_matrix` of the generated images, in the vocabulary's order; nan for words that nobody
    was asked for."""
    true_word_shares: Float[np.ndarray, "K K"] = field(compare=False)
    """The same of the true images."""


def evaluate(people: Sequence[Readings], protocol: Protocol, seed: int = 0) -> Evaluation:
    """The figures of all people's readings.

    Args:
        people: the readings of every person of the protocol.
        protocol: the protocol.
        seed: of the intervals.
    """
    read = _Everyone(people)
    figures = {
        **_identity_figures(read, seed),
        **_expression_figures(read, seed),
        **_image_figures(read, seed),
        **similarity_figures(people, seed),
        **diversity_figures(people, seed),
    }
    dials: dict[str, Dial] = {}
    if protocol.dial_people:
        more, dials = _dial_figures(people[: protocol.dial_people], protocol, seed)
        figures |= more
    prototypes, wanted = word_vectors(), read.words.ravel()
    matrix, true_matrix = (
        confusion_matrix(_flat(vectors), prototypes, wanted) for vectors in (read.expression, read.true_expression)
    )
    names = word_names()
    confusions = tuple(
        (pair, float(true_matrix[names.index(pair.wanted), names.index(pair.read)]))
        for pair in most_confused(matrix, names)
    )
    groups = {
        name: worst_group(np.array(figures[name].by_person), ABOUT[name].better == "higher", seed) for name in _BY_GROUP
    }
    found = {name: group for name, group in groups.items() if group is not None}
    known = tuple(attributes(person) for person in range(len(people)))
    return Evaluation(figures, confusions, dials, found, known, matrix, true_matrix)


class _Everyone:
    """The fields of `Readings`, each with an axis for the people first."""

    def __init__(self, people: Sequence[Readings]) -> None:
        self.words: Int[np.ndarray, "P V"] = np.stack([p.words for p in people])
        self.identity: Float[np.ndarray, "P V F"] = np.stack([p.identity for p in people])
        self.true_identity: Float[np.ndarray, "P V F"] = np.stack([p.true_identity for p in people])
        references = np.stack([p.reference_identity for p in people])
        # As many as there are images: copies of the reference.
        self.copied_identity: Float[np.ndarray, "P V F"] = np.repeat(references[:, None], self.words.shape[1], 1)
        self.expression: Float[np.ndarray, "P V W"] = np.stack([p.expression for p in people])
        self.true_expression: Float[np.ndarray, "P V W"] = np.stack([p.true_expression for p in people])
        self.reference_expression: Float[np.ndarray, "P W"] = np.stack([p.reference_expression for p in people])
        self.sharpness: Float[np.ndarray, "P V"] = np.stack([p.sharpness for p in people])
        self.variation: Float[np.ndarray, " P"] = np.stack([p.variation for p in people])
        self.true_variation: Float[np.ndarray, " P"] = np.stack([p.true_variation for p in people])


def _identity_figures(read: _Everyone, seed: int) -> dict[str, Figure]:
    made, true, copied = read.identity, read.true_identity, read.copied_identity
    other_image, stranger = np.roll(true, -1, axis=1), np.roll(true, -1, axis=0)

    def within(sets: Float[np.ndarray, "N K F"]) -> Float[np.ndarray, " N"]:
        return np.array([mean_cosine(one[None]) for one in sets])

    return {
        "identity": mean_figure(seed, _cosine(made, other_image), _cosine(true, other_image), _cosine(made, stranger)),
        "copy_score": mean_figure(seed, *(copy_scores(x, true, copied) for x in (made, true, copied))),
        "set_consistency": mean_figure(seed, within(made), within(true), float(within(true.swapaxes(0, 1)).mean())),
    }


def _expression_figures(read: _Everyone, seed: int) -> dict[str, Figure]:
    made, true, prototypes = read.expression, read.true_expression, word_vectors()
    wanted, shuffled = read.words, np.roll(read.words, -1, axis=1)
    copied = np.repeat(read.reference_expression[:, None], wanted.shape[1], 1)
    vectors = prototypes[wanted]

    def error(found: np.ndarray, vectors: np.ndarray) -> Float[np.ndarray, "P V"]:
        return 100.0 * np.abs(found - vectors).mean(-1)

    def gain(found: np.ndarray) -> Float[np.ndarray, " P"]:
        return relative_gain(found, vectors, read.reference_expression)

    def ranks(found: np.ndarray, words: np.ndarray) -> Int[np.ndarray, "P V"]:
        return word_ranks(_flat(found), prototypes, words.ravel()).reshape(words.shape)

    by_word = ranks(made, wanted), ranks(true, wanted), ranks(made, shuffled)
    return {
        "expression_error": mean_figure(
            seed, error(made, vectors), error(true, vectors), error(made, prototypes[shuffled])
        ),
        "expression_gain": mean_figure(seed, gain(made), gain(true), gain(copied)),
        **{f"word_top{top}": mean_figure(seed, *(retrieval(r, top) for r in by_word)) for top in (1, 5)},
    }


def _image_figures(read: _Everyone, seed: int) -> dict[str, Figure]:
    def distance(people: Int[np.ndarray, " K"]) -> float:
        return frechet_distance(_flat(read.identity[people]), _flat(read.true_identity[people]))

    found = jackknife(distance, len(read.identity))
    found = replace(found, low=float(np.maximum(found.low, 0.0)))  # nan stays nan
    copied = frechet_distance(_flat(read.copied_identity), _flat(read.true_identity))
    return {
        "identity_frechet": Figure(found, 0.0, copied),
        "sharpness": mean_figure(seed, read.sharpness, 1.0, _NAN),
        "background_variation": mean_figure(seed, read.variation, read.true_variation, _NAN),
    }


def _dial_figures(
    people: Sequence[Readings], protocol: Protocol, seed: int
) -> tuple[dict[str, Figure], dict[str, Dial]]:
    intensities = np.array(INTENSITIES)
    read, true = (np.stack([getattr(p, name) for p in people]) for name in ("dial_expression", "true_dial_expression"))
    # What the encoder reads in the true images is the scale: its own bias is no fault of the model.
    start, full = true[:, :, 0], true[:, :, INTENSITIES.index(1.0)]

    def amounts(vectors: Float[np.ndarray, "P D I W"]) -> Float[np.ndarray, "P D I"]:
        return read_amounts(vectors - start[:, :, None], full - start, np.zeros(start.shape[-1]))

    made_amounts, true_amounts = amounts(read), amounts(true)
    found, expected = dial_figures(made_amounts, intensities), dial_figures(true_amounts, intensities)
    references = np.stack([p.reference_identity for p in people])[:, None, None]
    cosines = _cosine(np.stack([p.dial_identity for p in people]), references)
    figures = {
        "dial_correlation": mean_figure(seed, found.correlation, expected.correlation, 0.0),
        "dial_monotone": mean_figure(seed, found.monotone, expected.monotone, 0.5),
        "dial_dead_zone": mean_figure(seed, found.flat, expected.flat, 1.0),
        "dial_identity_loss": mean_figure(seed, cosines[..., 0] - cosines[..., -1], _NAN, _NAN),
    }

    def curve(values: Float[np.ndarray, "P D I"], word: int) -> tuple[float, ...]:
        return tuple(values[:, word].mean(0).tolist())

    return figures, {
        word: Dial(INTENSITIES, curve(made_amounts, i), curve(true_amounts, i), curve(cosines, i))
        for i, word in enumerate(protocol.dial_words)
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "*batch"]:
    return (a * b).sum(-1)


def _flat(x: Float[np.ndarray, "P V W"]) -> Float[np.ndarray, "P*V W"]:
    return x.reshape(-1, x.shape[-1])
