"""What frozen networks make of every training image, computed once before training: latents, embeddings,
expressions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.cached_features import CachedFeatures, write_features
from genaffect_jax.data.sources.base import Source
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.functional import Functional, Parameters


def cache_features(
    config: DenoiserRun,
    source: Source,
    workdir: Path,
    faces: FaceEncoders,
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
    autoencoder_checksum: str,
) -> Source:
    """The source with all that a run computes once: latents, face embeddings, measured expressions.

    Raises:
        DataError: see `data.cached_features.write_features`.
    """
    latents = jax.jit(lambda parameters, images: autoencoder.merge(parameters).to_latents(normalise(images)))
    encoders: dict[str, Callable[[np.ndarray], Any]] = {}
    fingerprint = []
    if config.data.cache_latents:
        encoders["latents"] = lambda images: latents(parameters, images)
        fingerprint.append(autoencoder_checksum)
    if faces.identity is not None:
        encoders["embedding"] = faces.identity
        fingerprint.append(faces.identity.checksum)
    if config.model.conditioning.expression_space == "encoder" and faces.expression is not None:
        encoders["expression"] = faces.expression
        fingerprint.append(faces.expression.checksum)
    if not encoders:
        return source

    def encode(images: UInt8[np.ndarray, "B S S 3"]) -> dict[str, np.ndarray]:
        return {name: np.asarray(read(images)) for name, read in encoders.items()}

    path = write_features(
        source,
        workdir / "features.npy",
        encode,
        batch_size=64,
        fingerprint=" ".join(fingerprint),
        workers=len(os.sched_getaffinity(0)) if config.data.workers else 0,
    )
    return CachedFeatures(source, path)
