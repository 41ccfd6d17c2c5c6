"""Warns about references that lie far outside of what a model was trained on; they are sampled all the same."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from genaffect_jax.data.latent_range import LatentRange
from genaffect_jax.errors import UnfamiliarIdentityWarning
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional, Parameters


class ReferenceCheck:
    """Measures how far references lie from a training's images.

    Args:
        known: the range of the training images.
        autoencoder, parameters: encode the references.
    """

    def __init__(self, known: LatentRange, autoencoder: Functional[AutoencoderKL], parameters: Parameters) -> None:
        self._known, self._parameters = known, parameters
        self._encode = jax.jit(lambda p, image: autoencoder.merge(p).to_latents(normalise(image)))

    def __call__(self, references: UInt8[np.ndarray, "R S S 3"]) -> list[float]:
        """The distance of each reference, usual up to 1 (`data.latent_range`)."""
        # One at a time: one program for all numbers of references.
        latents = [np.asarray(self._encode(self._parameters, image[None]), np.float32) for image in references]
        return [float(distance) for distance in self._known.distances(np.concatenate(latents))]


def warn_of_unfamiliar(names: Sequence[str], distances: Sequence[float], stacklevel: int) -> None:
    """Warns, in one line, of references that are not usual.

    Args:
        names: what the caller gave as identity.
        distances: what `ReferenceCheck` measured.
        stacklevel: of the caller, as for `warnings.warn`.
    """
    far = [(name, distance) for name, distance in zip(names, distances, strict=True) if not distance <= 1]
    if far:
        named = ", ".join(
            f"{name} ({distance:.1f} times the largest usual distance from them)" for name, distance in far
        )
        warnings.warn(
            f"identity: unlike the images that the model was trained on: {named}; the images may lose what makes the "
            "person",
            UnfamiliarIdentityWarning,
            stacklevel=stacklevel + 1,
        )
