"""Expression spaces: the vectors of words, action units and images.

Every model has one space. In `UnitSpace`, a vector is the channels of `expressions.action_units`. In `EncoderSpace`, it
is the output of a face encoder, and the vector of a word is a mean over images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32

from genaffect_jax.errors import ExpressionError
from genaffect_jax.expressions.action_units import INDEX, LOWEST, expression_vector, neutral
from genaffect_jax.expressions.vocabulary import vocabulary

# The expression vector of an image file; raises ExpressionError if the file cannot be read.
ImageReader = Callable[[str], Float32[np.ndarray, " W"]]
_NEUTRAL = "neutral"


class ExpressionSpace(Protocol):
    """Vectors of words and images, and their blends."""

    def word(self, name: str) -> Float[np.ndarray, " W"]:
        """The vector of a word of the vocabulary, or of `neutral`.

        Raises:
            ExpressionError: this space has no vector for it.
        """
        ...

    def image(self, file: str) -> Float[np.ndarray, " W"]:
        """The vector of the face in an image file (an exemplar).

        Raises:
            ExpressionError: the file cannot be read, or there is no encoder to read it with.
        """
        ...

    def blend(
        self, terms: Sequence[tuple[Float[np.ndarray, " W"], float]], settings: Mapping[str, float]
    ) -> Float32[np.ndarray, " W"]:
        """`neutral + sum of weight * (vector - neutral)`, with the channels of `settings` set last.

        Raises:
            ExpressionError: the space has no channels to set, or no neutral face although it is needed.
        """
        ...


class UnitSpace:
    """Vectors of action units, gaze and head; words have the vectors of the vocabulary.

    Args:
        read: reads image files; without it, image files are refused.
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
    """Vectors of a face encoder without action units.

    Args:
        encoder: name of the encoder, for messages.
        words: vectors of the known words.
        read: reads image files with the encoder; without it, image files are refused.
    """

    def __init__(
        self, encoder: str, words: Mapping[str, Float32[np.ndarray, " W"]], read: ImageReader | None = None
    ) -> None:
        self._encoder, self._words, self._read = encoder, words, read

    def word(self, name: str) -> Float[np.ndarray, " W"]:
        if name not in self._words:
            raise ExpressionError(
                f"expression '{name}': the training images of this model show no such expression; it knows "
                f"{', '.join(sorted(self._words)) or 'no words'}"
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
        if abs(rest) > 1e-6:  # the neutral face cancels if the weights add up to 1
            total = total + rest * self.word(_NEUTRAL)
        return np.asarray(total, np.float32)


class AnySpace:
    """Accepts every word and every existing image file, with empty vectors: checks a text before a model is loaded."""

    def word(self, name: str) -> Float[np.ndarray, " 0"]:
        return np.zeros(0, np.float32)

    def image(self, file: str) -> Float[np.ndarray, " 0"]:
        if not os.path.isfile(file):  # also false for a name that no file can have
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
