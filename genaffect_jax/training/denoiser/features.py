"""Cached features: the outputs of frozen networks for every training image, computed once before training."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.cached_features import CachedFeatures, write_features
from genaffect_jax.data.sources.base import Source
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.xla import deterministic_options

_CALL_SIZE = 64  # images in one call of the networks


def cache_features(
    config: DenoiserRun,
    source: Source,
    run_dir: RunDir,
    faces: FaceEncoders,
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
) -> Source:
    """The source with cached features: latents if `data.cache_latents` is set, embeddings of the identity encoder, and
    expression vectors of the expression encoder if they are the model's expression space.

    Features are computed once and kept in the run folder, keyed by the images and the checksums of the networks.

    Args:
        config: the run.
        source: the training images.
        run_dir: the run folder, which holds the autoencoder.
        faces: the model's face encoders.
        autoencoder: the autoencoder.
        parameters: its parameters.

    Raises:
        DataError: see `data.cached_features.write_features`.
    """
    latents = jax.jit(
        lambda parameters, images: autoencoder.merge(parameters).to_latents(normalise(images)),
        compiler_options=deterministic_options(),
    )
    networks: dict[str, Callable[[np.ndarray], Any]] = {}
    checksums = []
    if config.data.cache_latents:
        networks["latents"] = lambda images: latents(parameters, images)
        checksums.append(checksum(run_dir.autoencoder))
    if faces.identity is not None:
        networks["embedding"] = faces.identity
        checksums.append(faces.identity.checksum)
    if config.model.conditioning.expression_space == "encoder" and faces.expression is not None:
        networks["expression"] = faces.expression
        checksums.append(faces.expression.checksum)
    if not networks:
        return source

    def encode(images: UInt8[np.ndarray, "B S S 3"]) -> dict[str, np.ndarray]:
        return {name: np.asarray(network(images)) for name, network in networks.items()}

    path = write_features(
        source,
        run_dir.features,
        encode,
        batch_size=_CALL_SIZE,
        fingerprint=" ".join(checksums),
        workers=len(os.sched_getaffinity(0)) if config.data.workers else 0,
    )
    return CachedFeatures(source, path)
