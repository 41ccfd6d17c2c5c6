"""The range of a training's images: how far an image may lie from them, by its latents, before a model is asked for
what it has never seen.

The latents of the training images span a subspace; the distance of another image is what its latents have outside of
it. Images of people that are left out while the subspace is fitted say which distances are usual.
Measured in docs/notes/unfamiliar_identities.md, with the other measures that were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Float32

from genaffect_jax.errors import DataError
from genaffect_jax.io.array_file import read_arrays, write_arrays

# Images that the range is fitted to: more of them found nothing more, and take longer.
MOST_IMAGES = 512
# Of fewer people nothing follows about others.
FEWEST_PEOPLE = 8
_COMPONENTS, _FOLDS = 64, 5
# Latents are averaged to at most so many places a side.
_SIDE = 16
# Share of unseen people's images that lie within the limit.
_WITHIN = 0.999
_SMALLEST = 1e-6
_ARRAYS = {"mean", "components", "limit"}


@dataclass(frozen=True, eq=False)
class LatentRange:
    """Subspace of the training images' latents, and the largest usual distance from it.

    Attributes:
        mean: float32 [D], D numbers an image.
        components: float32 [k, D], orthonormal.
        limit: distance within which `_WITHIN` of the images of unseen people of the same kind lie.
    """

    mean: Float32[np.ndarray, " D"]
    components: Float32[np.ndarray, "k D"]
    limit: float

    @classmethod
    def fit(cls, latents: Float[np.ndarray, "n h w c"], people: Sequence[str]) -> LatentRange | None:
        """Fits the range. Images whose latents are not finite are left out.

        The limit is the upper prediction limit of a normal distribution of the logarithms of the distances (Hahn and
        Meeker, Statistical Intervals, 1991, section 4.8), where every image is measured from a subspace fitted without
        its person, and the number of people, not of images, is the number of observations.

        Args:
            latents: latents of training images, `MOST_IMAGES` or fewer.
            people: the person on each.

        Returns:
            The range; None if it would be that of fewer than `FEWEST_PEOPLE` people.
        """
        finite = np.isfinite(latents).all((1, 2, 3))
        vectors, names = _vectors(latents[finite]), np.array(people)[finite]
        found = np.unique(names)
        if len(found) < FEWEST_PEOPLE:
            return None
        distances = np.empty(len(vectors))
        for fold in range(_FOLDS):
            left_out = np.isin(names, found[fold::_FOLDS])
            distances[left_out] = _distances(vectors[left_out], *_subspace(vectors[~left_out]))
        logarithms = np.log(np.maximum(distances, _SMALLEST))
        spread = _student(_WITHIN, len(found) - 1) * np.sqrt(1 + 1 / len(found)) * logarithms.std(ddof=1)
        return cls(*_subspace(vectors), float(np.exp(logarithms.mean() + spread)))

    def distances(self, latents: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, " n"]:
        """Distance of each image, in units of the limit: usual up to 1.

        Raises:
            DataError: the latents have another shape than those of the training.
        """
        vectors = _vectors(latents)
        if vectors.shape[1] != len(self.mean):
            raise DataError(f"latent range: of {len(self.mean)} numbers an image, found {vectors.shape[1]}")
        return _distances(vectors, self.mean, self.components) / self.limit

    def write(self, path: Path) -> None:
        """Writes a safetensors file, atomically."""
        arrays = {"mean": self.mean, "components": self.components, "limit": np.array([self.limit])}
        write_arrays(path, arrays, {})

    @classmethod
    def read(cls, path: Path) -> LatentRange:
        """Reads a file of `write`.

        Raises:
            DataError: the file is missing or damaged, or holds no latent range.
        """
        arrays, _ = read_arrays(path)
        if arrays.keys() != _ARRAYS:
            raise DataError(f"{path}: no latent range (holds {sorted(arrays)})")
        return cls(arrays["mean"], arrays["components"], float(arrays["limit"][0]))


def choose_images(people: Sequence[str], among: Sequence[str]) -> list[int]:
    """Indices of at most `MOST_IMAGES` images, of as many people as possible, a function of the arguments alone.

    Args:
        people: the person on each image.
        among: people to choose from.
    """
    rng, known = np.random.default_rng(0), set(among)
    images: dict[str, list[int]] = {}
    for index, person in enumerate(people):
        if person in known:
            images.setdefault(person, []).append(index)
    # First one image of each person, then a second of each: the rank of an image among its person's decides.
    ranked = [(rank, rng.random(), index) for own in images.values() for rank, index in enumerate(rng.permutation(own))]
    return sorted(int(index) for *_, index in sorted(ranked)[:MOST_IMAGES])


def _vectors(latents: Float[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n D"]:
    """One vector an image: means over equal squares, as many as fit into `_SIDE` a side."""
    each = -(-max(latents.shape[1:3]) // _SIDE)
    height, width = (length - length % each for length in latents.shape[1:3])
    squares = latents[:, :height, :width].reshape(len(latents), height // each, each, width // each, each, -1)
    return squares.mean((2, 4), dtype=np.float32).reshape(len(latents), -1)


def _subspace(vectors: Float32[np.ndarray, "n D"]) -> tuple[Float32[np.ndarray, " D"], Float32[np.ndarray, "k D"]]:
    """Mean and first principal components, by the Gram matrix, as D may be large."""
    mean = vectors.mean(0)
    centred = vectors - mean
    values, rows = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    count = min(_COMPONENTS, max(1, len(vectors) // 4), int((values > values[-1] * 1e-6).sum()))
    kept = rows[:, ::-1][:, :count] / np.sqrt(np.maximum(values[::-1][:count], _SMALLEST))
    return mean, (kept.T.astype(np.float32) @ centred)


def _distances(
    vectors: Float32[np.ndarray, "n D"], mean: Float32[np.ndarray, " D"], components: Float32[np.ndarray, "k D"]
) -> Float[np.ndarray, " n"]:
    """Root mean square of what lies outside the subspace."""
    centred = vectors - mean
    outside = centred - centred @ components.T @ components
    return np.sqrt(np.square(outside, dtype=np.float64).mean(1))


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t distribution (Abramowitz and Stegun, 26.7.5); below 1 % off from 7 degrees on."""
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
