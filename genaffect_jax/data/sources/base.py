"""What a source of pictures is: pictures with an identity and an expression, loaded one by one by index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True)
class Picture:
    """One picture of a source: who it shows and what the face does, without its pixels."""

    identity: str
    """Name of the person."""
    label: str
    """The expression as text of the expression grammar: a word, a blend, action units."""
    expression: Float[np.ndarray, " W"]
    """Expression vector, float32."""

    @property
    def expression_key(self) -> bytes:
        """Equal for two pictures exactly when their expression vectors are equal."""
        return self.expression.tobytes()


@runtime_checkable
class Source(Protocol):
    """A fixed list of pictures with random access.

    A source is pickled into the worker processes of the input pipeline, so it holds no open files and no device
    arrays, and `load` must not depend on the order of calls.
    """

    @property
    def pictures(self) -> Sequence[Picture]:
        """All pictures; an index into this sequence is the argument of `load`."""
        ...

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        ...

    def load(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        """The picture's pixels, uint8 `[S, S, 3]` in RGB (or its float16 latents `[h, w, c]`).

        Raises:
            DataError: the picture can no longer be read.
        """
        ...

    def describe(self) -> str:
        """One line for people: the kind of source, how many pictures, people and expressions, their size."""
        ...

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes when any picture, label or size of the source changes."""
        ...


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """SHA-256 over identities, labels and expression vectors, in order; hexadecimal."""
    digest = hashlib.sha256()
    for picture in pictures:
        for part in (picture.identity.encode(), picture.label.encode(), picture.expression_key):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def count_text(pictures: Sequence[Picture]) -> str:
    """`480 pictures of 40 people, 12 different expressions`."""
    people = len({p.identity for p in pictures})
    expressions = len({p.expression_key for p in pictures})
    return f"{len(pictures)} pictures of {people} people, {expressions} different expressions"
