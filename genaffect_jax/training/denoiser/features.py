"""Cached features: the outputs of frozen networks for every training image, computed once before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16, UInt8

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, MeshConfig
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.feature_writer import Encode, write_features
from genaffect_jax.data.sources.base import Source
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.memory import device_memory
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.processors import usable_processors
from genaffect_jax.parallel.sharding import batch_sharding, place, replicated
from genaffect_jax.parallel.xla import deterministic_options

# Images in one call of the networks: on CPUs, and at most on each accelerator.
_CPU_CALL_SIZE, _LARGEST_CALL_SIZE = 64, 256
# Scratch of the autoencoder's encoder, per pixel and channel of the first block, by XLA's account: 12 bytes in float32,
# 10 to 16 in bfloat16, as normalisations are float32.
_SCRATCH_BYTES = 16
_MEMORY_SHARE = 0.5

Network = Callable[[Parameters, UInt8[Array, "B S S 3"]], Array]


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

    Features are computed once, on all devices of this process, and kept in the run folder, keyed by the images and the
    checksums of the networks.

    Args:
        config: the run.
        source: the training images.
        run_dir: the run folder, which holds the autoencoder.
        faces: the model's face encoders.
        autoencoder: the autoencoder.
        parameters: its parameters.

    Raises:
        DataError: see `data.feature_writer.write_features`.
    """
    checksums = []
    if config.data.cache_latents:
        checksums.append(checksum(run_dir.autoencoder))
    if faces.identity is not None:
        checksums.append(faces.identity.checksum)
    if _measures_expressions(config, faces):
        assert faces.expression is not None
        checksums.append(faces.expression.checksum)
    if not checksums:
        return source
    devices = jax.local_devices()
    encode = make_encode(config, faces, autoencoder, parameters, devices)
    batch_size = len(devices) * call_size(config)
    side = config.data.image_size
    path = write_features(
        source,
        run_dir.features,
        encode,
        batch_size=batch_size,
        fingerprint=" ".join(checksums),
        workers=0 if config.data.workers == 0 else usable_processors(),
        prepare=lambda: encode(np.zeros((batch_size, side, side, 3), np.uint8)),
    )
    return CachedFeatures(source, path)


def make_encode(
    config: DenoiserRun,
    faces: FaceEncoders,
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
    devices: Sequence[jax.Device],
) -> Encode:
    """The networks whose outputs are cached, as one function of a batch that `devices` share equally.

    Results are float16, cast on the devices, and may still be being computed when the function returns; those of an
    expression encoder from an ONNX file, which runs outside JAX, are NumPy's.

    Args:
        config: the run.
        faces: the model's face encoders.
        autoencoder: the autoencoder.
        parameters: its parameters.
        devices: devices of this process.
    """
    mesh = make_mesh(MeshConfig(), devices)
    networks: dict[str, tuple[Network, Parameters]] = {}
    if config.data.cache_latents:
        networks["latents"] = (lambda p, images: autoencoder.merge(p).to_latents(normalise(images)), parameters)
    if faces.identity is not None:
        networks["embedding"] = (faces.identity.vectors, faces.identity.parameters)
    measured = faces.expression if _measures_expressions(config, faces) else None
    if isinstance(measured, AvatarEncoder):
        networks["expression"] = (measured.vectors, measured.parameters)
    programs = {name: (_half(network), place(p, replicated(mesh))) for name, (network, p) in networks.items()}

    def encode(images: UInt8[np.ndarray, "B S S 3"]) -> dict[str, Any]:
        placed = jax.device_put(images, batch_sharding(mesh))
        results: dict[str, Any] = {name: program(p, placed) for name, (program, p) in programs.items()}
        if measured is not None and "expression" not in results:
            results["expression"] = measured(images)
        return results

    return encode


def call_size(config: DenoiserRun) -> int:
    """Images per device and call: 64 on CPUs; on accelerators a power of two, up to 256, that fits into memory."""
    if jax.default_backend() == "cpu":
        return _CPU_CALL_SIZE
    if not config.data.cache_latents:
        return _LARGEST_CALL_SIZE
    image = _SCRATCH_BYTES * config.data.image_size**2 * config.model.autoencoder.block_out_channels[0]
    fitting = max(1, int(_MEMORY_SHARE * device_memory() / image))
    return min(_LARGEST_CALL_SIZE, 1 << (fitting.bit_length() - 1))


def _measures_expressions(config: DenoiserRun, faces: FaceEncoders) -> bool:
    return config.model.conditioning.expression_space == "encoder" and faces.expression is not None


def _half(network: Network) -> Callable[[Parameters, UInt8[Array, "B S S 3"]], Float16[Array, "B ..."]]:
    return jax.jit(
        lambda parameters, images: network(parameters, images).astype(jnp.float16),
        compiler_options=deterministic_options(),
    )
