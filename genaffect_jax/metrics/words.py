"""Emotion words: are generated expressions recognised as the word that was asked for? NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Confusion:
    """A word that is often read as another."""

    wanted: str
    """The word that was asked for."""
    read: str
    """The word that was nearest."""
    share: float
    """How often, of the images of `wanted`."""


def word_ranks(
    read: Float[np.ndarray, "B W"], prototypes: Float[np.ndarray, "K W"], wanted: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """How many words are nearer to each reading than the wanted one; 0 is a hit.

    The distance is the mean absolute difference over channels, that of the expression error. Words at the same distance
    as the wanted one count half, rounded up, so that equal prototypes are no hits for free.

    Args:
        read: expression vectors that an encoder read in images.
        prototypes: the vectors of all words.
        wanted: places of the words asked for.
    """
    distances = _distances(read, prototypes)
    own = distances[np.arange(len(read)), wanted][:, None]
    nearer, equal = (distances < own).sum(1), (distances == own).sum(1) - 1
    return nearer + (equal + 1) // 2


def retrieval(ranks: Int[np.ndarray, "*batch"], top: int) -> Float[np.ndarray, "*batch"]:
    """1 where the wanted word is among the `top` nearest, else 0. By chance: `top` of the number of words."""
    return (ranks < top).astype(np.float64)


def confusion_matrix(
    read: Float[np.ndarray, "B W"], prototypes: Float[np.ndarray, "K W"], wanted: Int[np.ndarray, " B"]
) -> Float[np.ndarray, "K K"]:
    """Shares of the images of each wanted word (rows) whose nearest word is that of the column.

    Returns:
        Rows that sum to 1; nan for words without images.
    """
    counts = np.zeros((len(prototypes), len(prototypes)))
    np.add.at(counts, (wanted, _distances(read, prototypes).argmin(1)), 1.0)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)


def most_confused(matrix: Float[np.ndarray, "K K"], words: Sequence[str], count: int = 10) -> tuple[Confusion, ...]:
    """The largest shares beside the diagonal, the largest first; pairs that never occur are left out.

    Raises:
        ValueError: not one word per row.
    """
    if matrix.shape != (len(words), len(words)):
        raise ValueError(f"most_confused: a matrix of shape {matrix.shape} for {len(words)} words")
    shares = np.nan_to_num(matrix.copy())
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    places = [np.unravel_index(i, shares.shape) for i in order]
    return tuple(Confusion(words[i], words[j], float(shares[i, j])) for i, j in places if shares[i, j] > 0)


def _distances(read: Float[np.ndarray, "B W"], prototypes: Float[np.ndarray, "K W"]) -> Float[np.ndarray, "B K"]:
    # One channel after the other: no array of all images, words and channels.
    total = np.zeros((len(read), len(prototypes)))
    for channel in range(read.shape[1]):
        total += np.abs(read[:, channel, None].astype(np.float64) - prototypes[None, :, channel])
    return total / read.shape[1]
