"""CLIP score and DINO consistency, where folders of such encoders are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from genaffect_jax.errors import WeightsError
from genaffect_jax.evaluation.figure import Figure, mean_figure, padded
from genaffect_jax.evaluation.people import NO_WORD
from genaffect_jax.evaluation.protocol import word_names
from genaffect_jax.evaluation.readings import Readings
from genaffect_jax.metrics.identity import mean_cosine
from genaffect_jax.metrics.similarity import clip_score

PROMPT = "a face showing {word}"


class ImageEncoder(Protocol):
    """Embeds images."""

    @property
    def description(self) -> str:
        """Network, checksum of its weights and preprocessing: all that decides the embeddings."""

    def images(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B E"]:
        """Unit vectors of images."""


class TextImageEncoder(ImageEncoder, Protocol):
    """Embeds images and texts in one space."""

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "K E"]:
        """Unit vectors of texts."""


@dataclass(frozen=True)
class SimilarityEncoders:
    """The encoders that were given; without one, its figure is not measured."""

    clip: TextImageEncoder | None = None
    dino: ImageEncoder | None = None

    def descriptions(self) -> dict[str, str | None]:
        """What decides the figures of each; None where it was not given."""
        return {
            "clip": None if self.clip is None else self.clip.description,
            "dino": None if self.dino is None else self.dino.description,
        }


def load_similarity_encoders(clip: Path | None = None, dino: Path | None = None) -> SimilarityEncoders:
    """Reads the encoders of local folders in the layout of transformers; nothing is imported where none is given.

    Raises:
        ConfigError: a folder is missing, or holds another network.
        WeightsError: a file is missing or damaged, or the extra `torch` is not installed.
    """
    if clip is None and dino is None:
        return SimilarityEncoders()
    try:
        from genaffect_jax.interop.image_encoders import ClipEncoder, DinoEncoder  # needs PyTorch
    except ImportError as e:
        raise WeightsError(str(e)) from e
    return SimilarityEncoders(
        None if clip is None else ClipEncoder(clip),
        None if dino is None else DinoEncoder(dino),
    )


def with_similarity(
    readings: Readings,
    encoders: SimilarityEncoders,
    images: UInt8[np.ndarray, "V S S 3"],
    truth: UInt8[np.ndarray, "V S S 3"],
) -> Readings:
    """A person's readings with what the given encoders read in the generated and the true images.

    Expressions that are no words have no prompt: their columns are nan.
    """
    if encoders.clip is not None:
        names, shown = word_names(), readings.words != NO_WORD
        made, true = (np.full((len(images), len(images)), np.nan, np.float32) for _ in range(2))
        if shown.any():
            texts = encoders.clip.texts([PROMPT.format(word=names[place]) for place in readings.words[shown]])
            made[:, shown], true[:, shown] = (encoders.clip.images(part) @ texts.T for part in (images, truth))
        readings = dataclasses.replace(readings, text_cosine=made, true_text_cosine=true)
    if encoders.dino is not None:
        made, true = (encoders.dino.images(part) for part in (images, truth))
        readings = dataclasses.replace(readings, dino=made, true_dino=true)
    return readings


def similarity_figures(people: Sequence[Readings], seed: int = 0) -> dict[str, Figure]:
    """The figures of the encoders that were given.

    Args:
        people: the readings of every person of the protocol.
        seed: of the intervals.
    """
    figures = {}
    if len(people[0].text_cosine) and any((p.words != NO_WORD).any() for p in people):
        made, true = ([clip_score(getattr(p, name)) for p in people] for name in ("text_cosine", "true_text_cosine"))
        shuffled = [
            np.roll(scores, -1, axis=1).diagonal() if len(scores) > 1 else np.full(1, np.nan) for scores in made
        ]
        own = ([scores.diagonal() for scores in sets] for sets in (made, true))
        figures["clip_score"] = mean_figure(seed, *(padded(one) for one in (*own, shuffled)))
    if len(people[0].dino) and any(len(p.dino) > 1 for p in people):
        value, ceiling = (
            np.array([mean_cosine(one[None]) if len(one) > 1 else np.nan for one in sets])
            for sets in ([p.dino for p in people], [p.true_dino for p in people])
        )
        longest = max(len(p.dino) for p in people)
        mixed = [np.stack([p.true_dino[place] for p in people if place < len(p.dino)]) for place in range(longest)]
        floor = float(np.mean([mean_cosine(one[None]) for one in mixed if len(one) > 1]))
        figures["dino_consistency"] = mean_figure(seed, value, ceiling, floor)
    return figures
