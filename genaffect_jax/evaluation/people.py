"""The people of an evaluation: what the pipeline gets of each, and the true images. Who they are is for others to say.

`procedural_people` renders them; `folder_people` reads their images from a folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from genaffect_jax.evaluation.protocol import Protocol
from genaffect_jax.inference.references import Identity
from genaffect_jax.pipeline import Pipeline

NO_WORD = -1
_NAMED = 5  # names and reasons in a sentence before "and n more"


@dataclass(frozen=True, eq=False)
class Person(ABC):
    """One person and the V expressions asked for; no image is held."""

    name: str
    """What reports call the person."""
    labels: tuple[str, ...]
    """The expressions asked for, each as a text of the expression grammar."""
    words: Int[np.ndarray, " V"]
    """Places of the expressions in the vocabulary; `NO_WORD` for those that are not one of the 135 words."""
    vectors: Float[np.ndarray, "V 40"]
    """Their action units."""
    attributes: Mapping[str, str]
    """What groups of people are made by; the same names for all people."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """What the pipeline gets.

        Raises:
            DataError: the reference can no longer be read.
        """

    @abstractmethod
    def reference(self, side: int) -> UInt8[np.ndarray, "S S 3"]:
        """The reference as an image; raises as `identity`."""

    @abstractmethod
    def true_images(self, side: int) -> UInt8[np.ndarray, "V S S 3"]:
        """The person with each expression, in their order.

        Raises:
            DataError: an image can no longer be read.
        """

    @abstractmethod
    def true_dials(self, side: int) -> UInt8[np.ndarray, "D*I S S 3"]:
        """The person along the protocol's dials; no images where no true ones exist."""


class People(ABC):
    """The people of one evaluation."""

    protocol: Protocol
    """Numbers of people, expressions and dials; of the people that there are."""

    rendered: bool
    """Whether true images differ from each other in the face alone and exist for every expression: only then can
    generated images be compared with them pixel by pixel, and are there true dials."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides who the people are and what is asked for, beside the protocol, as JSON; with `source`."""

    @abstractmethod
    def describe(self) -> str:
        """Who the people are, in a few sentences for reports."""

    @abstractmethod
    def __getitem__(self, place: int) -> Person:
        """The person at a place from 0 on."""

    def __len__(self) -> int:
        """Number of people."""
        return self.protocol.people

    @abstractmethod
    def refuse_model(self, pipeline: Pipeline) -> None:
        """Refuses a model that may have been trained on one of the people.

        Raises:
            ConfigError: it may have been.
        """


def request(labels: Sequence[str]) -> str:
    """Several expressions as one text of the grammar. Behind action units a comma would continue the list of units."""
    return ("; " if any("=" in label for label in labels) else ", ").join(labels)


def named(reasons: Mapping[str, str]) -> str:
    """Names by their reason: `fewer than 2 images (anna, ben); corrupt (carl/joy.png) and 2 more reasons`."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    parts = [f"{reason} ({', '.join(names[:_NAMED])}{_more(names)})" for reason, names in by_reason.items()]
    return "; ".join(parts[:_NAMED]) + _more(parts, " reasons")


def _more(items: Sequence[str], what: str = "") -> str:
    return f" and {len(items) - _NAMED} more{what}" if len(items) > _NAMED else ""
