"""The word prototypes: what each word is as a vector of a face encoder, learned from labelled images."""

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
    """Vectors of the words that labelled images show, for encoders whose vectors have no action units.

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
        """Means over images: `labels[i]` is what image i shows, `vectors[i]` what the encoder makes of it.

        An image counts for a word if it shows that word alone, whatever gaze and head do. Weights are taken to be
        what they are in the grammar, `vector = neutral + weight * (word - neutral)`, and the word's vector is the
        least-squares fit: the mean, where all weights are 1. Without neutral images only those of weight 1 count.

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
        """Makes sure that the vectors are those of an encoder.

        Raises:
            DataError: they are of other weights.
        """
        if self.encoder_checksum != encoder_checksum:
            raise DataError(
                f"word prototypes: made with {self.encoder} ({self.encoder_checksum[:12]}), the model has {encoder} "
                f"({encoder_checksum[:12]})"
            )

    def write(self, path: Path) -> None:
        """Writes the bank to a safetensors file, which appears complete or not at all."""
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
            DataError: the file is missing or damaged, or holds no bank.
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
