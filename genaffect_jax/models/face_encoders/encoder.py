"""Face encoders from weight files of this package, run in JAX, for the protocols of `data.face_encoders`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from genaffect_jax.config import DType
from genaffect_jax.config.encoders import FaceEncoderConfig, describe_crop
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.expressions.action_units import LOWEST, WIDTH
from genaffect_jax.io.weight_file import checksum, load_weights, read_config, read_metadata, resolve_weights
from genaffect_jax.models.autoencoder.model import normalise
from genaffect_jax.models.face_encoders.networks import FaceEncoder
from genaffect_jax.models.face_encoders.onnx_expression import ONNX_SUFFIX, OnnxExpressionEncoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.xla import deterministic_options

EVALUATOR = "evaluator"  # in the names of encoders that only measure
# Images per call of the compiled program; other numbers are padded to the next size. Two processors take up to 40 %
# less time for an image in eights than in calls of 64 (docs/notes/evaluation.md#time).
CPU_CALL_SIZES, CALL_SIZES = (1, 8), (1, 8, 64)


class AvatarEncoder:
    """A face encoder with its weights; it follows `IdentityEncoder` or `ExpressionEncoder`.

    The call takes and returns numpy arrays. Inside a jitted function use `vectors`, or with images in [-1, 1]
    `network.merge(parameters)(images)`, which is pure and differentiable.

    Attributes:
        name: name of the encoder.
        licence: licence of the weights.
        checksum: SHA-256 of the weight file.
        config: configuration of the network.
        network: the network as a pure function.
        parameters: its weights, float32.
    """

    def __init__(
        self,
        *,
        name: str,
        licence: str,
        checksum: str,
        config: FaceEncoderConfig,
        network: Functional[FaceEncoder],
        parameters: Parameters,
    ) -> None:
        self.name, self.licence, self.checksum = name, licence, checksum
        self.config, self.network, self.parameters = config, network, parameters
        self._program = jax.jit(self.vectors, compiler_options=deterministic_options())

    @property
    def width(self) -> int:
        """Length W of a vector."""
        return self.config.width

    @property
    def preprocessing(self) -> str:
        """What is done to an image before the network reads it, for reports."""
        part, side = describe_crop(self.config.crop), self.config.image_size
        return f"{part}, resized linearly with antialiasing to {side} px, RGB from -1 to 1"

    def vectors(self, parameters: Parameters, images: UInt8[Array, "B S S 3"]) -> Float32[Array, "B W"]:
        """The call as a pure function, for jitted programs: any number of images, with this network's parameters."""
        vectors = self.network.merge(parameters)(normalise(images))
        return vectors if self.config.target == "identity" else jnp.clip(vectors, LOWEST, 1.0)

    def __call__(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B W"]:
        """Vectors of square images of any size; expression vectors are clipped to their channels' ranges.

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise TypeError(f"{self.name}: images have dtype {images.dtype}, must be uint8")
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise ValueError(f"{self.name}: images have shape {images.shape}, must be (count, side, side, 3)")
        parts = [np.zeros((0, self.width), np.float32)]
        sizes = CPU_CALL_SIZES if jax.default_backend() == "cpu" else CALL_SIZES
        for first in range(0, len(images), sizes[-1]):
            part = images[first : first + sizes[-1]]
            filled = np.zeros((next(n for n in sizes if n >= len(part)), *part.shape[1:]), np.uint8)
            filled[: len(part)] = part
            parts.append(np.asarray(self._program(self.parameters, filled))[: len(part)])
        return np.concatenate(parts)


def build_encoder(config: FaceEncoderConfig, dtype: DType = "float32") -> Functional[FaceEncoder]:
    """The network of a configuration as a pure function; see `FaceEncoder` for its input and output.

    Raises:
        ConfigError: an expression encoder whose width is not that of `expressions.action_units`.
    """
    if config.target == "expression" and config.width != WIDTH:
        raise ConfigError(f"encoder.width={config.width}: must be {WIDTH}, the channels of an expression vector")
    return Functional(lambda rngs: FaceEncoder(config, dtype=jnp.dtype(dtype), rngs=rngs))


def load_identity_encoder(source: str, dtype: DType = "float32") -> AvatarEncoder:
    """The identity encoder of `package:NAME` or of a weight file; an `IdentityEncoder`.

    Raises:
        WeightsError: as `load_encoder`, or the file holds an expression encoder.
    """
    return _require_target(load_encoder(source, dtype), source, "identity")


def load_expression_encoder(source: str, dtype: DType = "float32") -> AvatarEncoder:
    """The expression encoder of `package:NAME` or of a weight file; an `ExpressionEncoder`.

    Raises:
        WeightsError: as `load_encoder`, or the file holds an identity encoder.
    """
    return _require_target(load_encoder(source, dtype), source, "expression")


def load_exemplar_encoder(source: str) -> AvatarEncoder | OnnxExpressionEncoder:
    """An expression encoder that a denoiser may be conditioned on: a weight file, or the .json of an ONNX file.

    Raises:
        WeightsError: as `load_conditioning_encoder` or `OnnxExpressionEncoder`.
        ConfigError: the encoder is an evaluator.
    """
    if not source.endswith(ONNX_SUFFIX):
        return load_conditioning_encoder(source, "expression")
    encoder = OnnxExpressionEncoder(Path(source))
    refuse_evaluator(encoder.name, source, "expression")
    return encoder


def load_conditioning_encoder(source: str, target: Literal["identity", "expression"]) -> AvatarEncoder:
    """An encoder that a denoiser may be conditioned on, or trained with in an auxiliary loss.

    Raises:
        WeightsError: as `load_identity_encoder` and `load_expression_encoder`.
        ConfigError: the encoder is an evaluator.
    """
    encoder = _require_target(load_encoder(source), source, target)
    refuse_evaluator(encoder.name, source, target)
    return encoder


def refuse_evaluator(name: str, source: str, target: str) -> None:
    """Refuses an encoder that is meant for measuring, as a condition and in losses.

    Args:
        name: the name in the file's header, which a renamed or copied file keeps.
        source: `package:NAME` or file, for the message.
        target: `identity` or `expression`.

    Raises:
        ConfigError: the name contains `evaluator`.
    """
    if EVALUATOR in name:
        raise ConfigError(
            f"{source}: {name} is an evaluator, which only measures generated images: a denoiser that has seen it, as "
            f"a condition or in its loss, could not be judged by it; use package:{target}_avatar or another encoder"
        )


def load_encoder(source: str, dtype: DType = "float32") -> AvatarEncoder:
    """The encoder of `package:NAME` or of a weight file, for either target.

    Raises:
        WeightsError: there is no such file, it is damaged, holds no encoder, or lacks a name or licence.
    """
    if source.endswith(ONNX_SUFFIX):
        raise WeightsError(
            f"weights {source!r}: an ONNX encoder, which has no gradients and runs outside the compiled programs; here "
            "a weight file of this package is needed (ArcFace: python -m genaffect_jax.prepare arcface)"
        )
    path: Path = resolve_weights(source)
    config = read_config(path, FaceEncoderConfig)
    metadata = read_metadata(path)
    absent = [name for name in ("name", "licence") if not metadata.get(name)]
    if absent:
        raise WeightsError(f"{path}: the header has no entry {' and '.join(absent)} (has {sorted(metadata)})")
    network = build_encoder(config, dtype)
    return AvatarEncoder(
        name=metadata["name"],
        licence=metadata["licence"],
        checksum=checksum(path),
        config=config,
        network=network,
        parameters=load_weights(network, path, config),
    )


def _require_target(encoder: AvatarEncoder, source: str, target: str) -> AvatarEncoder:
    if encoder.config.target != target:
        raise WeightsError(f"weights {source!r}: an encoder of {encoder.config.target}; one of {target} is needed")
    return encoder
