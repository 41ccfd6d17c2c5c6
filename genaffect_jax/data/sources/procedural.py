"""Source `procedural`: avatars rendered by this package; each image is a function of its index alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.data.sources.base import Example, count_text, examples_digest
from genaffect_jax.expressions.action_units import MEDIAN_UNITS, SIDED_UNITS, WIDTH
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.expressions.vocabulary import vocabulary

# Folded into the seed of expressions, so that expressions and looks of person i have independent random numbers.
_EXPRESSIONS = 7
# The mixture of expressions, beside one near-neutral image of every person (see
# docs/guide/data.md#the-procedural-source).
_WORD, _BLEND = 0.4, 0.2  # the rest are random action units
_HIGHEST_UNITS = 5
_ONE_SIDED = 0.3
_GAZE, _HEAD = 0.5, 0.6
_PROBES = 4  # images whose pixels enter the fingerprint

_lookup_identity = lru_cache(maxsize=64)(sample_identity)


class ProceduralSource:
    """`identities` avatars with `expressions_per_identity` images each.

    Person i is `sample_identity(i)`, named `avatar00000i`. The first image of each person is near neutral, the others
    follow a mixture of words, blends and action units. A label is a text of the expression grammar that parses to
    exactly the image's vector. A larger number of either adds images and leaves the others unchanged.

    Args:
        image_size: side S of the images, in pixels.
        identities: number of people, at least 1.
        expressions_per_identity: images of each person, at least 1.
        pose_scale: random movement of gaze and head, in addition to the pose of a word, 0 (none) to 1.
    """

    def __init__(
        self, image_size: int, identities: int, expressions_per_identity: int, pose_scale: float = 1.0
    ) -> None:
        self.image_size = image_size
        self._each = expressions_per_identity
        self._images = tuple(p for i in range(identities) for p in examples_of(i, expressions_per_identity, pose_scale))

    @property
    def examples(self) -> Sequence[Example]:
        """All images, person by person."""
        return self._images

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        return WIDTH

    def load(self, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """Renders one image."""
        person = _lookup_identity(index // self._each)
        return render(person, self._images[index].expression, self.image_size)

    def describe(self) -> str:
        """One line for users."""
        return f"procedural avatars: {count_text(self.examples)}, {self.image_size} x {self.image_size} pixels"

    def fingerprint(self) -> str:
        """Digest of the numbers, all labels and vectors, and the pixels of a few images.

        Because of the pixels, another renderer has another fingerprint.
        """
        digest = hashlib.sha256(f"procedural {self.image_size} {examples_digest(self.examples)}".encode())
        for index in np.linspace(0, len(self._images) - 1, _PROBES).astype(int):
            digest.update(self.load(int(index)).tobytes())
        return digest.hexdigest()


def sample_expression(rng: np.random.Generator, pose_scale: float = 1.0) -> str:
    """Samples the text of one expression: a word (40 %), a blend of two (20 %) or action units (40 %), and a pose.

    Words have weights from 0.4 to 1. A blend divides a total weight from 0.7 to 1.2 between two words, each at least
    30 %. Of the action units, 1 to 5 are set, from 0.2 to 1; a sided unit is one-sided in 30 % of the cases. Gaze moves
    in half of the images and the head in 60 % (standard deviation 0.25 and 0.2, at most 0.6 and 0.5 of the range).
    """
    words = list(vocabulary())
    kind = rng.random()
    if kind < _WORD:
        terms = [f"{rng.choice(words)}:{rng.uniform(0.4, 1.0):.2f}"]
        settings: list[str] = []
    elif kind < _WORD + _BLEND:
        first, second = rng.choice(words, 2, replace=False)
        total, share = rng.uniform(0.7, 1.2), rng.uniform(0.3, 0.7)
        terms = [f"{total * share:.2f}*{first}", f"{total * (1 - share):.2f}*{second}"]
        settings = []
    else:
        terms = []
        settings = _sample_units(rng)
    return _text(terms, settings + _sample_pose(rng, pose_scale))


def _sample_units(rng: np.random.Generator) -> list[str]:
    units = rng.choice([*SIDED_UNITS, *MEDIAN_UNITS], rng.integers(1, _HIGHEST_UNITS + 1), replace=False)
    settings = []
    for unit in units:
        side = str(rng.choice(["L", "R"])) if unit in SIDED_UNITS and rng.random() < _ONE_SIDED else ""
        settings.append(f"AU{unit}{side}={rng.uniform(0.2, 1.0):.2f}")
    return settings


def _sample_pose(rng: np.random.Generator, scale: float) -> list[str]:
    settings: list[str] = []
    if scale == 0:
        return settings
    for channels, probability, deviation, limit in (
        (("gaze_yaw", "gaze_pitch"), _GAZE, 0.25, 0.6),
        (("head_yaw", "head_pitch", "head_roll"), _HEAD, 0.2, 0.5),
    ):
        if rng.random() < probability:
            for channel in channels:
                settings.append(f"{channel}={scale * np.clip(rng.normal(0.0, deviation), -limit, limit):.2f}")
    return settings


def _sample_near_neutral(rng: np.random.Generator, pose_scale: float) -> str:
    """The resting face with a third of the usual movement of gaze and head."""
    return _text(["neutral"], _sample_pose(rng, pose_scale / 3))


def _text(terms: list[str], settings: list[str]) -> str:
    return " + ".join([*terms, *([",".join(settings)] if settings else [])])


def examples_of(person: int, count: int, pose_scale: float) -> list[Example]:
    """The first `count` images of person number `person`, without their pixels; see `ProceduralSource`."""
    images: list[Example] = []
    seen: set[bytes] = set()
    for place in range(count):
        rng = np.random.default_rng([_EXPRESSIONS, person, place])
        while True:  # equal expressions of one person are rare, and sampled again
            expression = parse_expression(
                _sample_near_neutral(rng, pose_scale) if place == 0 else sample_expression(rng, pose_scale)
            )
            image = Example(f"avatar{person:06d}", expression.name, expression.vector)
            if image.expression_key not in seen:
                break
        seen.add(image.expression_key)
        images.append(image)
    return images
