"""Procedural people: everything about them is known, and every true image can be rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation.people import People, Person
from genaffect_jax.evaluation.protocol import FIRST_PERSON, Protocol, word_names, word_vectors
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.pipeline import Pipeline

SOURCE = "procedural"


class ProceduralPeople(People):
    """Avatars from number `FIRST_PERSON` on, with words of the vocabulary."""

    rendered = True

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    @property
    def settings(self) -> dict[str, Any]:
        return {"source": SOURCE}

    def describe(self) -> str:
        p = self.protocol
        return f"{p.people} unseen procedural people, {p.expressions} words each; dials of {p.dial_people} people."

    def __getitem__(self, place: int) -> ProceduralPerson:
        words, names = self.protocol.words(place), word_names()
        return ProceduralPerson(
            name=f"seed:{FIRST_PERSON + place}",
            labels=tuple(names[i] for i in words),
            words=words,
            vectors=word_vectors(words),
            attributes=attributes(place),
            place=place,
            protocol=self.protocol,
        )

    def refuse_model(self, pipeline: Pipeline) -> None:
        seen = pipeline.config.data
        if seen.source == "procedural" and seen.identities > FIRST_PERSON:
            raise ConfigError(
                f"was trained on {seen.identities} procedural avatars; the people of the evaluation are unseen up to "
                f"{FIRST_PERSON}",
                field="model",
                found=pipeline.name,
            )


@dataclass(frozen=True, eq=False)
class ProceduralPerson(Person):
    """A person that the renderer draws."""

    place: int
    protocol: Protocol

    @property
    def identity(self) -> str:
        return self.name

    def reference(self, side: int) -> UInt8[np.ndarray, "S S 3"]:
        return true_images(self.place, neutral()[None], side)[0]

    def true_images(self, side: int) -> UInt8[np.ndarray, "V S S 3"]:
        return true_images(self.place, self.vectors, side)

    def true_dials(self, side: int) -> UInt8[np.ndarray, "D*I S S 3"]:
        return true_images(self.place, self.protocol.dial_vectors, side)


def true_images(person: int, vectors: Float[np.ndarray, "V 40"], side: int) -> UInt8[np.ndarray, "V S S 3"]:
    """A person of the protocol with these expressions, as the renderer draws them."""
    identity = sample_identity(FIRST_PERSON + person)
    return np.stack([render(identity, vector, side) for vector in vectors])


def attributes(person: int) -> dict[str, str]:
    """The attributes of a person of the protocol, as the renderer knows them."""
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
