"""The figures of an evaluation, from what was read of every person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from genaffect_jax.evaluation.catalogue import ABOUT, ALONG_WORDS, ONE_TRUE_IMAGE, READ_IN_TRUTH, About
from genaffect_jax.evaluation.diversity import diversity_figures
from genaffect_jax.evaluation.figure import Figure, mean_figure, padded
from genaffect_jax.evaluation.groups import WorstGroup, worst_group
from genaffect_jax.evaluation.people import NO_WORD, People
from genaffect_jax.evaluation.protocol import INTENSITIES, Protocol, word_names, word_vectors
from genaffect_jax.evaluation.readings import Readings
from genaffect_jax.evaluation.similarity import similarity_figures
from genaffect_jax.expressions.action_units import WIDTH
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
    """Amounts that were read in true images; empty where there are none."""
    cosine_to_reference: tuple[float, ...]
    """Cosine of the identity embeddings of generated image and reference."""


@dataclass(frozen=True)
class Evaluation:
    """All that was found."""

    figures: dict[str, Figure]
    """By the names of `catalogue.ABOUT`; what was not measured is not there."""
    confusions: tuple[tuple[Confusion, float], ...]
    """Words that are read as others, the most frequent first, each with the share of the true images that are read so:
    what the encoder itself confuses."""
    dials: dict[str, Dial]
    """By word."""
    worst_groups: dict[str, WorstGroup]
    """By the names of the figures that are compared over groups of people."""
    names: tuple[str, ...]
    """Of the people."""
    attributes: tuple[Mapping[str, str], ...]
    """Of each person, what groups are made by."""
    word_shares: Float[np.ndarray, "K K"] = field(compare=False)
    """`metrics.words.confusion_matrix` of the generated images, in the vocabulary's order; nan for words that nobody
    was asked for."""
    true_word_shares: Float[np.ndarray, "K K"] = field(compare=False)
    """The same of the true images."""

    def about(self, name: str) -> About:
        """What a figure of this evaluation is."""
        figure = self.figures.get(name)
        return ABOUT[name] if figure is None or figure.other is None else figure.other


def evaluate(readings: Sequence[Readings], people: People, seed: int = 0) -> Evaluation:
    """The figures of all people's readings.

    Args:
        readings: those of every person, in the order of the people.
        people: the people.
        seed: of the intervals.
    """
    read, protocol = _Everyone(readings), people.protocol
    figures = {
        **_identity_figures(read, seed),
        **_expression_figures(read, seed),
        **_image_figures(read, people.rendered, seed),
        **similarity_figures(readings, seed),
        **diversity_figures(readings, seed),
    }
    dials: dict[str, Dial] = {}
    if protocol.dial_people:
        more, dials = _dial_figures(readings[: protocol.dial_people], protocol, seed)
        figures |= more
    known = [people[place] for place in range(len(people))]
    attributes = [person.attributes for person in known]
    groups = {
        name: worst_group(np.array(figures[name].by_person), attributes, ABOUT[name].better == "higher", seed)
        for name in _BY_GROUP
    }
    found = {name: group for name, group in groups.items() if group is not None}
    names = tuple(person.name for person in known)
    matrices = _word_shares(read)
    return Evaluation(figures, _confusions(*matrices), dials, found, names, tuple(attributes), *matrices)


class _Everyone:
    """The fields of `Readings`, each with an axis for the people first.

    V is the largest number of images of a person. `counted` says which places are images; the others hold nan (of
    words: `NO_WORD`), which no figure counts.
    """

    def __init__(self, people: Sequence[Readings]) -> None:
        counts = [len(p.words) for p in people]
        self.counted: Bool[np.ndarray, "P V"] = np.arange(max(counts)) < np.array(counts)[:, None]
        self.words: Int[np.ndarray, "P V"] = padded([p.words for p in people], NO_WORD)
        self.wanted: Float[np.ndarray, "P V W"] = padded([p.wanted for p in people])
        self.identity: Float[np.ndarray, "P V F"] = padded([p.identity for p in people])
        self.true_identity: Float[np.ndarray, "P V F"] = padded([p.true_identity for p in people])
        references = np.stack([p.reference_identity for p in people])
        # As many as there are images: copies of the reference.
        self.copied_identity: Float[np.ndarray, "P V F"] = np.repeat(references[:, None], max(counts), 1)
        self.expression: Float[np.ndarray, "P V W"] = padded([p.expression for p in people])
        self.true_expression: Float[np.ndarray, "P V W"] = padded([p.true_expression for p in people])
        self.reference_expression: Float[np.ndarray, "P W"] = np.stack([p.reference_expression for p in people])
        self.sharpness: Float[np.ndarray, "P V"] = padded([p.sharpness for p in people])
        self.variation: Float[np.ndarray, " P"] = np.stack([p.variation for p in people])
        self.true_variation: Float[np.ndarray, " P"] = np.stack([p.true_variation for p in people])

    def sets(self, values: Float[np.ndarray, "P V F"]) -> list[Float[np.ndarray, "K F"]]:
        """The images of each person."""
        return [one[here] for one, here in zip(values, self.counted, strict=True)]

    def flat(self, values: Float[np.ndarray, "P V F"]) -> Float[np.ndarray, "B F"]:
        """The images of all people."""
        return values[self.counted]

    def next_image(self, values: Shaped[np.ndarray, "P V *F"]) -> Shaped[np.ndarray, "P V *F"]:
        """In the place of each image the person's next one, the first after the last."""
        counts = self.counted.sum(1)[:, None]
        places = np.arange(self.counted.shape[1])
        return values[np.arange(len(values))[:, None], np.where(self.counted, (places + 1) % counts, places)]

    def next_person(self, values: Float[np.ndarray, "P V F"]) -> Float[np.ndarray, "P V F"]:
        """In the place of each image one of the next person, from the first on again if that person has fewer."""
        following = np.roll(np.arange(len(values)), -1)[:, None]
        places = np.arange(self.counted.shape[1]) % self.counted.sum(1)[following]
        return values[following, places]

    @property
    def several(self) -> Bool[np.ndarray, "P 1"]:
        """People with more than one image."""
        return self.counted.sum(1, keepdims=True) > 1


def _identity_figures(read: _Everyone, seed: int) -> dict[str, Figure]:
    made, true, copied = read.identity, read.true_identity, read.copied_identity
    other_image, stranger = read.next_image(true), read.next_person(true)
    # Of a person with one image, the next one is itself: no ceiling.
    ceiling = np.where(read.several, _cosine(true, other_image), _NAN)

    def within(sets: Sequence[Float[np.ndarray, "K F"]]) -> Float[np.ndarray, " N"]:
        return np.array([mean_cosine(one[None]) if len(one) > 1 else _NAN for one in sets])

    figures = {
        "identity": mean_figure(seed, _cosine(made, other_image), ceiling, _cosine(made, stranger)),
        "copy_score": mean_figure(seed, *(copy_scores(x, true, copied) for x in (made, true, copied))),
    }
    if not read.several.all():
        figures["identity"] = figures["identity"].described_as(ONE_TRUE_IMAGE)
    if read.several.any():
        mixed = [column[here] for column, here in zip(true.swapaxes(0, 1), read.counted.T, strict=True)]
        floor = float(np.nanmean(within(mixed)))
        figures["set_consistency"] = mean_figure(seed, within(read.sets(made)), within(read.sets(true)), floor)
    return figures


def _expression_figures(read: _Everyone, seed: int) -> dict[str, Figure]:
    made, true, wanted = read.expression, read.true_expression, read.wanted
    shuffled = np.where(read.several[..., None], read.next_image(wanted), _NAN)
    copied = np.repeat(read.reference_expression[:, None], wanted.shape[1], 1)

    def error(found: np.ndarray, vectors: np.ndarray) -> Float[np.ndarray, "P V"]:
        return 100.0 * np.abs(found - vectors).mean(-1)

    def gain(found: np.ndarray) -> Float[np.ndarray, " P"]:
        sets = zip(read.sets(found), read.sets(wanted), read.reference_expression, strict=True)
        return np.array([relative_gain(*one) for one in sets])

    figures = {
        "expression_error": mean_figure(seed, error(made, wanted), error(true, wanted), error(made, shuffled)),
        "expression_gain": mean_figure(seed, gain(made), gain(true), gain(copied)),
    }
    if wanted.shape[-1] != WIDTH:
        return {name: figure.described_as(READ_IN_TRUTH[name]) for name, figure in figures.items()}
    if (read.words == NO_WORD).all():
        return figures
    next_words = np.where(read.several, read.next_image(read.words), NO_WORD)
    by_word = [_ranks(found, words) for found, words in ((made, read.words), (true, read.words), (made, next_words))]
    for top in (1, 5):
        shares = (np.where(np.isnan(ranks), _NAN, retrieval(ranks, top)) for ranks in by_word)
        figures[f"word_top{top}"] = mean_figure(seed, *shares)
    return figures


def _ranks(found: Float[np.ndarray, "P V W"], words: Int[np.ndarray, "P V"]) -> Float[np.ndarray, "P V"]:
    """`word_ranks` of all images; nan for those of no word."""
    ranks, shown = np.full(words.shape, _NAN), (words != NO_WORD) & np.isfinite(found).all(-1)
    ranks[shown] = word_ranks(found[shown], word_vectors(), words[shown])
    return ranks


def _word_shares(read: _Everyone) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, "K K"]]:
    """The confusion matrices of generated and of true images; nan for words that nobody was asked for."""
    shown, count = read.words != NO_WORD, len(word_names())
    if read.expression.shape[-1] != WIDTH or not shown.any():
        return np.full((count, count), _NAN), np.full((count, count), _NAN)
    made, true = (
        confusion_matrix(vectors[shown], word_vectors(), read.words[shown])
        for vectors in (read.expression, read.true_expression)
    )
    return made, true


def _confusions(
    shares: Float[np.ndarray, "K K"], true_shares: Float[np.ndarray, "K K"]
) -> tuple[tuple[Confusion, float], ...]:
    if np.isnan(shares).all():
        return ()
    names = word_names()
    return tuple(
        (pair, float(true_shares[names.index(pair.wanted), names.index(pair.read)]))
        for pair in most_confused(shares, names)
    )


def _image_figures(read: _Everyone, rendered: bool, seed: int) -> dict[str, Figure]:
    def distance(people: Int[np.ndarray, " K"]) -> float:
        counted = read.counted[people]
        return frechet_distance(read.identity[people][counted], read.true_identity[people][counted])

    found = jackknife(distance, len(read.identity))
    found = replace(found, low=float(np.maximum(found.low, 0.0)))  # nan stays nan
    copied = frechet_distance(read.flat(read.copied_identity), read.flat(read.true_identity))
    figures = {"identity_frechet": Figure(found, 0.0, copied)}
    if rendered:
        figures["sharpness"] = mean_figure(seed, read.sharpness, 1.0, _NAN)
        figures["background_variation"] = mean_figure(seed, read.variation, read.true_variation, _NAN)
    return figures


def _dial_figures(
    people: Sequence[Readings], protocol: Protocol, seed: int
) -> tuple[dict[str, Figure], dict[str, Dial]]:
    read, true = (np.stack([getattr(p, name) for p in people]) for name in ("dial_expression", "true_dial_expression"))
    references = np.stack([p.reference_identity for p in people])[:, None, None]
    cosines = _cosine(np.stack([p.dial_identity for p in people]), references)
    figures = {"dial_identity_loss": mean_figure(seed, cosines[..., 0] - cosines[..., -1], _NAN, _NAN)}
    full_amount = INTENSITIES.index(1.0)
    made_amounts = true_amounts = np.zeros((len(people), len(protocol.dial_words), 0))
    if true.shape[1]:
        # What the encoder reads in the true images is the scale: its own bias is no fault of the model.
        start, full = true[:, :, 0], true[:, :, full_amount]
        made_amounts, true_amounts = (_amounts(vectors - start[:, :, None], full - start) for vectors in (read, true))
        figures |= _evenness(made_amounts, true_amounts, seed)
    elif read.shape[-1] == WIDTH:
        # No true images: the scale is the word's vector, from what is read at intensity 0.
        words = protocol.dial_vectors.reshape(read.shape[1:])[:, full_amount]
        made_amounts = _amounts(read - read[:, :, :1], np.broadcast_to(words, (len(people), *words.shape)))
        along = _evenness(made_amounts, None, seed)
        figures |= {name: figure.described_as(ALONG_WORDS[name]) for name, figure in along.items()}

    def curve(values: Float[np.ndarray, "P D I"], word: int) -> tuple[float, ...]:
        return tuple(values[:, word].mean(0).tolist())

    return figures, {
        word: Dial(INTENSITIES, curve(made_amounts, i), curve(true_amounts, i), curve(cosines, i))
        for i, word in enumerate(protocol.dial_words)
    }


def _amounts(moved: Float[np.ndarray, "P D I W"], full: Float[np.ndarray, "P D W"]) -> Float[np.ndarray, "P D I"]:
    return read_amounts(moved, full, np.zeros(full.shape[-1]))


def _evenness(
    made: Float[np.ndarray, "P D I"], true: Float[np.ndarray, "P D I"] | None, seed: int
) -> dict[str, Figure]:
    """The figures of amounts; without true ones, no ceiling."""
    intensities = np.array(INTENSITIES)
    found, expected = (None if amounts is None else dial_figures(amounts, intensities) for amounts in (made, true))
    assert found is not None
    return {
        f"dial_{name}": mean_figure(
            seed, getattr(found, field), _NAN if expected is None else getattr(expected, field), floor
        )
        for name, field, floor in (
            ("correlation", "correlation", 0.0),
            ("monotone", "monotone", 0.5),
            ("dead_zone", "flat", 1.0),
        )
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "*batch"]:
    return (a * b).sum(-1)
