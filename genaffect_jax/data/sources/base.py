"""The protocol of a source: examples with an identity and an expression, whose pixels are loaded by index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True)
class Example:
    """One image of a source without its pixels: person and expression."""

    identity: str
    """Name of the person."""
    label: str
    """The expression as text of the expression grammar: a word, a blend, action units."""
    expression: Float[np.ndarray, " W"]
    """Expression vector, float32."""

    @property
    def expression_key(self) -> bytes:
        """Equal for two examples if and only if their expression vectors are equal."""
        return self.expression.tobytes()


@runtime_checkable
class Source(Protocol):
    """A fixed list of images with random access.

    A source is pickled into the worker processes of the input pipeline, so it must hold no open files and no device
    arrays, and `load` must not depend on the order of calls.
    """

    @property
    def examples(self) -> Sequence[Example]:
        """All examples; an index into this sequence is the argument of `load`."""
        ...

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        ...

    def load(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        """The image's pixels, uint8 `[S, S, 3]` in RGB (or its float16 latents `[h, w, c]`).

        Raises:
            DataError: the image can no longer be read.
        """
        ...

    def describe(self) -> str:
        """One line for users: kind of source, number of images, people and expressions, size of the images."""
        ...

    def fingerprint(self) -> str:
        """A hexadecimal digest that changes when any image, label or size of the source changes."""
        ...


def examples_digest(images: Sequence[Example]) -> str:
    """SHA-256 over identities, labels and expression vectors, in order; hexadecimal."""
    digest = hashlib.sha256()
    for image in images:
        for part in (image.identity.encode(), image.label.encode(), image.expression_key):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def count_text(images: Sequence[Example]) -> str:
    """`480 images of 40 people, 12 different expressions`."""
    people = len({p.identity for p in images})
    expressions = len({p.expression_key for p in images})
    return f"{len(images)} images of {people} people, {expressions} different expressions"
