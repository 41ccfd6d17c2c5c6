"""Fits the range of the training images' latents, by which sampling recognises unfamiliar references."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.latent_range import LatentRange, choose_images
from genaffect_jax.data.sources.base import Source
from genaffect_jax.io.progress import progress_bar
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.training.denoiser.features import call_size


def fit_latent_range(
    config: DenoiserRun,
    features: Source,
    people: Sequence[str],
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
) -> LatentRange | None:
    """The range of the images of the people that are trained on; None if they are too few.

    Args:
        config: the run.
        features: the training images, whose cached latents are read if there are any.
        people: the people that are trained on.
        autoencoder, parameters: encode images otherwise.

    Raises:
        DataError: an image cannot be read.
    """
    persons = [example.identity for example in features.examples]
    chosen = choose_images(persons, people)
    latents = _latents(config, features, chosen, autoencoder, parameters)
    return LatentRange.fit(latents, [persons[index] for index in chosen])


def _latents(
    config: DenoiserRun,
    features: Source,
    chosen: Sequence[int],
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
) -> Float[np.ndarray, "n h w c"]:
    if isinstance(features, CachedFeatures) and "latents" in features.columns:
        return features.columns["latents"][list(chosen)].astype(np.float32)
    encode = jax.jit(lambda p, images: autoencoder.merge(p).to_latents(normalise(images)))
    size, found = min(call_size(config), len(chosen)), []
    with progress_bar("range of the images", len(chosen)) as step:
        for start in range(0, len(chosen), size):
            images = np.stack([features.load(index) for index in chosen[start : start + size]])
            filled = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), np.uint8)])
            found.append(np.asarray(encode(parameters, filled), np.float32)[: len(images)])
            step(len(images))
    return np.concatenate(found)
