"""Images of greater variety, for networks that must also serve images of other styles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.data.augment import augment, random_scene
from genaffect_jax.data.sources.base import Example, Source

# The rest are scenes without faces.
_PLAIN, _AUGMENTED = 0.5, 0.25


class VariedSource:
    """A source whose images are kept (half), augmented (a quarter) or replaced by random vector scenes (a quarter).

    The choice is a function of (seed, index). Labels are those of the inner source and do not describe the replaced
    images, so this source is only for autoencoders, which read no labels.

    Args:
        inner: the images.
        image_size: their side, in pixels.
        seed: at least 0.
    """

    def __init__(self, inner: Source, image_size: int, seed: int) -> None:
        self._inner = inner
        self._image_size = image_size
        self._seed = seed

    @property
    def examples(self) -> Sequence[Example]:
        """The inner source's."""
        return self._inner.examples

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        return self._inner.width

    def load(self, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """One image, kept, augmented or replaced."""
        rng = np.random.default_rng((self._seed, index))
        kind = rng.random()
        if kind >= _PLAIN + _AUGMENTED:
            return random_scene(rng, self._image_size)
        image = self._inner.load(index)
        return image if kind < _PLAIN else augment(image, rng)

    def describe(self) -> str:
        """One line for users."""
        return f"{self._inner.describe()}, varied"

    def fingerprint(self) -> str:
        """Digest of the inner source and the seed."""
        return hashlib.sha256(f"varied {self._seed} {self._inner.fingerprint()}".encode()).hexdigest()
