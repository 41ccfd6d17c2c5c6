"""Word prototypes: the vectors of words in a face encoder's space, fitted to labelled images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import Expression
from genaffect_jax.io.array_file import read_arrays, write_arrays

_NEUTRAL = "neutral"
_ARRAYS, _ENTRIES = {"vectors", "images"}, {"words", "encoder", "encoder_checksum"}


@dataclass(frozen=True, eq=False)
class WordPrototypes:
    """Vectors of the words that occur as labels, for encoders whose vectors have no action units.

    Attributes:
        vectors: word (or `neutral`) to its vector, float32 [W].
        images: word to the number of images behind it.
        encoder: name of the encoder.
        encoder_checksum: SHA-256 of its weights.
    """

    vectors: Mapping[str, Float32[np.ndarray, " W"]]
    images: Mapping[str, int]
    encoder: str
    encoder_checksum: str

    @classmethod
    def fit(
        cls,
        labels: Sequence[Expression],
        vectors: Float[np.ndarray, "n W"],
        *,
        encoder: str,
        encoder_checksum: str,
    ) -> WordPrototypes:
        """Fits the vectors: `labels[i]` is the label of image i, `vectors[i]` its vector.

        An image counts for a word if its label is that word alone, gaze and head aside. With the grammar's
        `vector = neutral + weight * (word - neutral)`, the word's vector is the least-squares solution: the mean if all
        weights are 1. Without neutral images, only images of weight 1 count.

        Raises:
            DataError: no image shows a single word.
        """
        vectors = np.asarray(vectors, np.float64)
        shown: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            if label.word is not None:
                shown.setdefault(label.word, []).append(index)
        neutral = vectors[shown[_NEUTRAL]].mean(0) if _NEUTRAL in shown else None
        found, images = {}, {}
        for word, indices in sorted(shown.items()):
            if word == _NEUTRAL and neutral is not None:
                found[word], images[word] = neutral.astype(np.float32), len(indices)
                continue
            if neutral is None:
                indices = [i for i in indices if labels[i].weight == 1.0]
            if not indices:
                continue
            weights = np.array([labels[i].weight for i in indices])
            rest = np.zeros(vectors.shape[1]) if neutral is None else neutral
            fitted = rest + weights @ (vectors[indices] - rest) / np.square(weights).sum()
            found[word], images[word] = fitted.astype(np.float32), len(indices)
        if not found:
            raise DataError(
                f"word prototypes: none of {len(labels)} images shows a single word; without words only images "
                "can give expressions, so label some images with words (docs/guide/expressions.md)"
            )
        return cls(found, images, encoder, encoder_checksum)

    def check(self, encoder: str, encoder_checksum: str) -> None:
        """Checks that the vectors were computed with an encoder.

        Raises:
            DataError: they were computed with other weights.
        """
        if self.encoder_checksum != encoder_checksum:
            raise DataError(
                f"word prototypes: made with {self.encoder} ({self.encoder_checksum[:12]}), the model has {encoder} "
                f"({encoder_checksum[:12]})"
            )

    def write(self, path: Path) -> None:
        """Writes the prototypes to a safetensors file, atomically."""
        words = list(self.vectors)
        arrays = {
            "vectors": np.stack([self.vectors[word] for word in words]),
            "images": np.array([self.images[word] for word in words], np.int32),
        }
        entries = {
            "words": json.dumps(words),
            "encoder": self.encoder,
            "encoder_checksum": self.encoder_checksum,
        }
        write_arrays(path, arrays, entries)

    @classmethod
    def read(cls, path: Path) -> WordPrototypes:
        """Reads a file of `write`.

        Raises:
            DataError: the file is missing or damaged, or holds no word prototypes.
        """
        arrays, entries = read_arrays(path)
        if arrays.keys() != _ARRAYS or entries.keys() != _ENTRIES:
            raise DataError(f"{path}: no word prototypes (holds {sorted(arrays)} with entries {sorted(entries)})")
        words = json.loads(entries["words"])
        return cls(
            vectors=dict(zip(words, arrays["vectors"], strict=True)),
            images=dict(zip(words, arrays["images"].tolist(), strict=True)),
            encoder=entries["encoder"],
            encoder_checksum=entries["encoder_checksum"],
        )
