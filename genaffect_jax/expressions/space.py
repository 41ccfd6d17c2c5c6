"""What words, action units and images are as expression vectors: the spaces that the expression grammar speaks of.

A model's expressions live in one space. In `UnitSpace` a vector is the channels of `expressions.action_units`; in
`EncoderSpace` it is whatever a face encoder makes of an image, and words stand for means over images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32

from genaffect_jax.errors import ExpressionError
from genaffect_jax.expressions.action_units import INDEX, LOWEST, expression_vector, neutral
from genaffect_jax.expressions.vocabulary import vocabulary

# Reads the expression off an image file; raises ExpressionError if the file cannot be read.
ImageReader = Callable[[str], Float32[np.ndarray, " W"]]
_NEUTRAL = "neutral"


class ExpressionSpace(Protocol):
    """Vectors of single words and images, and how they are put together."""

    def word(self, name: str) -> Float[np.ndarray, " W"]:
        """The vector of a word of the vocabulary, or of `neutral`.

        Raises:
            ExpressionError: this space has no vector for it.
        """
        ...

    def image(self, file: str) -> Float[np.ndarray, " W"]:
        """The vector of the face on an image file, the exemplar.

        Raises:
            ExpressionError: there is no such image, or nothing that reads it.
        """
        ...

    def blend(
        self, terms: Sequence[tuple[Float[np.ndarray, " W"], float]], settings: Mapping[str, float]
    ) -> Float32[np.ndarray, " W"]:
        """`neutral + sum of weight * (vector - neutral)`, then the channels that are set.

        Raises:
            ExpressionError: channels are set, or the neutral face is needed, and the space has none.
        """
        ...


class UnitSpace:
    """Expression vectors of action units, gaze and head; words have those of the vocabulary.

    Args:
        read: reads images; without it they are refused.
    """

    def __init__(self, read: ImageReader | None = None) -> None:
        self._read = read

    def word(self, name: str) -> Float[np.ndarray, " W"]:
        return neutral() if name == _NEUTRAL else vocabulary()[name].vector

    def image(self, file: str) -> Float[np.ndarray, " W"]:
        return _read_image(self._read, file)

    def blend(
        self, terms: Sequence[tuple[Float[np.ndarray, " W"], float]], settings: Mapping[str, float]
    ) -> Float32[np.ndarray, " W"]:
        """The weighted sum (neutral is zero), clipped to the channels' ranges, with `settings` on top."""
        total = neutral().astype(np.float64)
        for vector, weight in terms:
            total += weight * vector
        result = np.clip(total, LOWEST, 1.0).astype(np.float32)
        for channel in sorted(settings, key=lambda name: name in INDEX):  # one-sided last
            given = expression_vector({channel: settings[channel]})
            indices = [INDEX[channel]] if channel in INDEX else [INDEX[f"{channel}L"], INDEX[f"{channel}R"]]
            result[indices] = given[indices]
        return result


class EncoderSpace:
    """Expression vectors of a face encoder without action units.

    Args:
        encoder: name of the encoder, for messages.
        words: vectors of the known words.
        read: reads images with that encoder; without it they are refused.
    """

    def __init__(
        self, encoder: str, words: Mapping[str, Float32[np.ndarray, " W"]], read: ImageReader | None = None
    ) -> None:
        self._encoder, self._words, self._read = encoder, words, read

    def word(self, name: str) -> Float[np.ndarray, " W"]:
        if name not in self._words:
            raise ExpressionError(
                f"expression '{name}': the training images of this model show no such expression; its bank has "
                f"{', '.join(sorted(self._words)) or 'nothing'}"
            )
        return self._words[name]

    def image(self, file: str) -> Float[np.ndarray, " W"]:
        return _read_image(self._read, file)

    def blend(
        self, terms: Sequence[tuple[Float[np.ndarray, " W"], float]], settings: Mapping[str, float]
    ) -> Float32[np.ndarray, " W"]:
        if settings:
            raise ExpressionError(
                f"expression '{', '.join(settings)}': this model's expressions are vectors of {self._encoder}, which "
                "has no action units; write words or images"
            )
        total = sum(weight * vector.astype(np.float64) for vector, weight in terms)
        rest = 1.0 - sum(weight for _, weight in terms)
        if abs(rest) > 1e-6:  # weights that add up to 1 need no neutral face
            total = total + rest * self.word(_NEUTRAL)
        return np.asarray(total, np.float32)


class AnySpace:
    """Knows every word and every image file that exists, as no numbers at all: to check a text before a model is
    loaded."""

    def word(self, name: str) -> Float[np.ndarray, " 0"]:
        return np.zeros(0, np.float32)

    def image(self, file: str) -> Float[np.ndarray, " 0"]:
        if not Path(file).is_file():
            raise ExpressionError(f"expression '{file}': no such image file")
        return np.zeros(0, np.float32)

    def blend(
        self, terms: Sequence[tuple[Float[np.ndarray, " 0"], float]], settings: Mapping[str, float]
    ) -> Float32[np.ndarray, " 0"]:
        return np.zeros(0, np.float32)


def _read_image(read: ImageReader | None, file: str) -> Float[np.ndarray, " W"]:
    if read is None:
        raise ExpressionError(f"expression '{file}': an image needs an expression encoder, and there is none here")
    return read(file)
