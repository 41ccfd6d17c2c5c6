"""The face encoders of a generator's working folder, and what they make of the training pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from genaffect_jax.config import Config, ConfigError, ModelConfig
from genaffect_jax.data.encoded import EncodedSource, write_encoded
from genaffect_jax.data.expression_bank import ExpressionBank
from genaffect_jax.data.pictures import Picture, Source
from genaffect_jax.faces.encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.faces.grammar import parse_expression
from genaffect_jax.models.autoencoder import AutoencoderKL, normalise
from genaffect_jax.models.avatar_encoders import AvatarEncoder, load_conditioning_encoder, load_exemplar_encoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.onnx_expression import OnnxExpressionEncoder
from genaffect_jax.models.weights import resolve_weights

IDENTITY_FILE = "identity_encoder.safetensors"
EXPRESSION_FILE = "expression_encoder.safetensors"
ONNX_EXPRESSION_FILE = "expression_encoder.json"
"""Takes the place of `EXPRESSION_FILE` where the encoder is an ONNX file; that lies beside it."""
BANK_FILE = "expression_bank.safetensors"


@dataclass(frozen=True)
class FaceEncoders:
    """The encoders that a model is conditioned on; None stands for one that it does not have."""

    identity: AvatarEncoder | None
    """Gives the embeddings of the references."""
    expression: AvatarEncoder | OnnxExpressionEncoder | None
    """Reads expressions from pictures."""


def claim_encoders(config: ModelConfig, workdir: Path) -> FaceEncoders:
    """The encoders of a run; one that begins copies their weights into its folder.

    The folder stays usable when the original files move or change; a run that continues reads the copies.

    Raises:
        WeightsError: a file is missing or damaged, or of another kind, or an evaluator's. Nothing has been copied then.
        ConfigError: the configured width is not the encoder's.
    """
    identity, expression = config.identity_encoder, config.expression_encoder
    if identity and not (workdir / IDENTITY_FILE).exists():
        load_conditioning_encoder(identity, "identity")
        _copy(resolve_weights(identity), workdir / IDENTITY_FILE)
    if expression and not expression_file(workdir).exists():
        encoder = load_exemplar_encoder(expression)
        if isinstance(encoder, OnnxExpressionEncoder):
            encoder.write(workdir / ONNX_EXPRESSION_FILE)
        else:
            _copy(resolve_weights(expression), workdir / EXPRESSION_FILE)
    return read_encoders(config, workdir)


def expression_file(workdir: Path) -> Path:
    """The file of a working folder that says what its expression encoder is."""
    onnx = workdir / ONNX_EXPRESSION_FILE
    return onnx if onnx.exists() else workdir / EXPRESSION_FILE


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def read_encoders(config: ModelConfig, workdir: Path) -> FaceEncoders:
    """The encoders in a working folder.

    Raises:
        WeightsError: a file is missing or damaged.
        ConfigError: the configured width is not the encoder's.
    """
    identity = expression = None
    if config.identity_encoder:
        identity = load_conditioning_encoder(str(workdir / IDENTITY_FILE), "identity")
        _require_width("identity_embedding", config.conditioning.identity_embedding, identity)
    if config.expression_encoder:
        expression = load_exemplar_encoder(str(expression_file(workdir)))
        _require_width("expression_width", config.conditioning.expression_width, expression)
    return FaceEncoders(identity, expression)


def encode_pictures(
    config: Config,
    source: Source,
    workdir: Path,
    faces: FaceEncoders,
    autoencoder: Functional[AutoencoderKL],
    parameters: Parameters,
    autoencoder_checksum: str,
) -> Source:
    """The source with all that a run computes once: latents, face embeddings, measured expressions.

    Raises:
        DataError: see `data.encoded.write_encoded`.
    """
    latents = jax.jit(lambda parameters, pictures: autoencoder.merge(parameters).to_latents(normalise(pictures)))
    encoders: dict[str, Callable[[np.ndarray], Any]] = {}
    fingerprint = []
    if config.data.cache_latents:
        encoders["latents"] = lambda pictures: latents(parameters, pictures)
        fingerprint.append(autoencoder_checksum)
    if faces.identity is not None:
        encoders["embedding"] = faces.identity
        fingerprint.append(faces.identity.checksum)
    if config.model.conditioning.expression_space == "encoder" and faces.expression is not None:
        encoders["expression"] = faces.expression
        fingerprint.append(faces.expression.checksum)
    if not encoders:
        return source

    def encode(pictures: UInt8[np.ndarray, "B S S 3"]) -> dict[str, np.ndarray]:
        return {name: np.asarray(read(pictures)) for name, read in encoders.items()}

    path = write_encoded(
        source, workdir / "encoded.npy", encode, batch_size=64, fingerprint=" ".join(fingerprint),
        workers=len(os.sched_getaffinity(0)) if config.data.workers else 0,
    )  # fmt: skip
    return EncodedSource(source, path)


def claim_bank(
    workdir: Path, pictures: Sequence[Picture], people: Sequence[str], encoder: ExpressionEncoder
) -> ExpressionBank:
    """The expression bank of a run, learned when it begins from the pictures of the people it trains on.

    Args:
        workdir: folder of the run; the bank is written there.
        pictures: labelled pictures with the encoder's vectors.
        people: names of the people that are trained on.
        encoder: the expression encoder.

    Raises:
        DataError: as `ExpressionBank.fit` and `read`, or the bank there is of another encoder.
    """
    path = workdir / BANK_FILE
    if not path.exists():
        known = set(people)
        chosen = [picture for picture in pictures if picture.identity in known]
        labels = {label: parse_expression(label) for label in {p.label for p in chosen}}
        vectors: Float[np.ndarray, "n W"] = np.stack([p.expression for p in chosen])
        ExpressionBank.fit(
            [labels[p.label] for p in chosen], vectors, encoder=encoder.name, encoder_checksum=encoder.checksum
        ).write(path)
    return read_bank(workdir, encoder)


def read_bank(workdir: Path, encoder: ExpressionEncoder) -> ExpressionBank:
    """The expression bank in a working folder.

    Raises:
        DataError: it is missing or damaged, or of another encoder.
    """
    bank = ExpressionBank.read(workdir / BANK_FILE)
    bank.check(encoder.name, encoder.checksum)
    return bank


def _require_width(field: str, width: int, encoder: IdentityEncoder | ExpressionEncoder) -> None:
    if width != encoder.width:
        raise ConfigError(f"conditioning.{field}={width}: must be {encoder.width}, the width of {encoder.name}")
