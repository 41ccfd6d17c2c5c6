"""What an evaluation samples: people, expressions of each, and dials. A function of its settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from genaffect_jax.errors import require
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.expressions.vocabulary import vocabulary

# Procedural avatars from this number on are in no training set of this package's presets.
FIRST_PERSON = 1_000_001
INTENSITIES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
DIAL_WORDS = ("joy", "anger", "sadness", "surprise")


@dataclass(frozen=True)
class Protocol:
    """Who is sampled, with which expressions."""

    people: int = 64
    """People, at least 2."""
    expressions: int = 24
    """Words of each procedural person, 2 to 135, spread over the 135 words; each person's begin one word later. Of
    people in a folder, the largest number of images."""
    dial_people: int = 8
    """People for whom dials are sampled too, from the first on; 0 for none."""
    dial_words: tuple[str, ...] = DIAL_WORDS
    """Words of the dials, each at the intensities 0, 0.25 and so on to 1.5."""

    def __post_init__(self) -> None:
        words = list(vocabulary())
        require(self.people >= 2, "people", self.people, "must be at least 2, as strangers are the floor")
        require(2 <= self.expressions <= len(words), "expressions", self.expressions, f"must be 2 to {len(words)}")
        require(0 <= self.dial_people <= self.people, "dial_people", self.dial_people, f"must be 0 to {self.people}")
        for word in self.dial_words:
            require(word in words, "dial_words", word, "must be one of the 135 words")

    def words(self, person: int) -> Int[np.ndarray, " V"]:
        """Places of a person's words in the vocabulary, evenly spread: neighbours there are alike."""
        count = len(vocabulary())
        return (person + np.arange(self.expressions) * (count // self.expressions)) % count

    @property
    def dials(self) -> list[str]:
        """The expressions of all dials, word by word."""
        return [f"{word}:{i:g}" if i else "neutral" for word in self.dial_words for i in INTENSITIES]

    @property
    def dial_vectors(self) -> Float[np.ndarray, "D*I 40"]:
        """The action-unit vectors of `dials`; above intensity 1 channels stop at the end of their range."""
        return np.stack([e.vector for e in parse_expressions(", ".join(self.dials))])


def word_names() -> list[str]:
    """The 135 words in the vocabulary's order."""
    return list(vocabulary())


def word_vectors(places: Sequence[int] | Int[np.ndarray, " K"] | None = None) -> Float[np.ndarray, "K 40"]:
    """Action-unit vectors of words, of all if no places are given."""
    vectors = np.stack([word.vector for word in vocabulary().values()]).astype(np.float32)
    return vectors if places is None else vectors[np.asarray(places)]
