"""The expression bank: what each word is as a vector of a face encoder, learned from labelled pictures."""

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
_ARRAYS, _ENTRIES = {"vectors", "pictures"}, {"words", "encoder", "encoder_checksum"}


@dataclass(frozen=True, eq=False)
class ExpressionBank:
    """Vectors of the words that labelled pictures show, for encoders whose vectors have no action units.

    Attributes:
        vectors: word (or `neutral`) to its vector, float32 [W].
        pictures: word to the number of pictures behind it.
        encoder: name of the encoder.
        encoder_checksum: SHA-256 of its weights.
    """

    vectors: Mapping[str, Float32[np.ndarray, " W"]]
    pictures: Mapping[str, int]
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
    ) -> ExpressionBank:
        """Means over pictures: `labels[i]` is what picture i shows, `vectors[i]` what the encoder makes of it.

        A picture counts for a word if it shows that word alone, whatever gaze and head do. Weights are taken to be
        what they are in the grammar, `vector = neutral + weight * (word - neutral)`, and the word's vector is the
        least-squares fit: the mean, where all weights are 1. Without neutral pictures only those of weight 1 count.

        Raises:
            DataError: no picture shows a single word.
        """
        vectors = np.asarray(vectors, np.float64)
        shown: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            if label.word is not None:
                shown.setdefault(label.word, []).append(index)
        neutral = vectors[shown[_NEUTRAL]].mean(0) if _NEUTRAL in shown else None
        found, pictures = {}, {}
        for word, indices in sorted(shown.items()):
            if word == _NEUTRAL and neutral is not None:
                found[word], pictures[word] = neutral.astype(np.float32), len(indices)
                continue
            if neutral is None:
                indices = [i for i in indices if labels[i].weight == 1.0]
            if not indices:
                continue
            weights = np.array([labels[i].weight for i in indices])
            rest = np.zeros(vectors.shape[1]) if neutral is None else neutral
            fitted = rest + weights @ (vectors[indices] - rest) / np.square(weights).sum()
            found[word], pictures[word] = fitted.astype(np.float32), len(indices)
        if not found:
            raise DataError(
                f"expression bank: none of {len(labels)} pictures shows a single word; without words only pictures "
                "can give expressions, so label some pictures with words (docs/expressions.md)"
            )
        return cls(found, pictures, encoder, encoder_checksum)

    def check(self, encoder: str, encoder_checksum: str) -> None:
        """Makes sure that the vectors are those of an encoder.

        Raises:
            DataError: they are of other weights.
        """
        if self.encoder_checksum != encoder_checksum:
            raise DataError(
                f"expression bank: made with {self.encoder} ({self.encoder_checksum[:12]}), the model has {encoder} "
                f"({encoder_checksum[:12]})"
            )

    def write(self, path: Path) -> None:
        """Writes the bank to a safetensors file, which appears complete or not at all."""
        words = list(self.vectors)
        arrays = {
            "vectors": np.stack([self.vectors[word] for word in words]),
            "pictures": np.array([self.pictures[word] for word in words], np.int32),
        }
        entries = {
            "words": json.dumps(words),
            "encoder": self.encoder,
            "encoder_checksum": self.encoder_checksum,
        }
        write_arrays(path, arrays, entries)

    @classmethod
    def read(cls, path: Path) -> ExpressionBank:
        """Reads a file of `write`.

        Raises:
            DataError: the file is missing or damaged, or holds no bank.
        """
        arrays, entries = read_arrays(path)
        if arrays.keys() != _ARRAYS or entries.keys() != _ENTRIES:
            raise DataError(f"{path}: no expression bank (holds {sorted(arrays)} with entries {sorted(entries)})")
        words = json.loads(entries["words"])
        return cls(
            vectors=dict(zip(words, arrays["vectors"], strict=True)),
            pictures=dict(zip(words, arrays["pictures"].tolist(), strict=True)),
            encoder=entries["encoder"],
            encoder_checksum=entries["encoder_checksum"],
        )
