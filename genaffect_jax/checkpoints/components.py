"""The face encoders of a denoiser's run folder, and what they make of the training images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from genaffect_jax.checkpoints.run_dir import EXPRESSION_FILE, IDENTITY_FILE, ONNX_EXPRESSION_FILE, PROTOTYPES_FILE
from genaffect_jax.config import ModelConfig
from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.data.sources.base import Example
from genaffect_jax.errors import ConfigError
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.io.weight_file import resolve_weights
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, load_conditioning_encoder, load_exemplar_encoder
from genaffect_jax.models.face_encoders.onnx_expression import OnnxExpressionEncoder


@dataclass(frozen=True)
class FaceEncoders:
    """The encoders that a model is conditioned on; None stands for one that it does not have."""

    identity: AvatarEncoder | None
    """Gives the embeddings of the references."""
    expression: AvatarEncoder | OnnxExpressionEncoder | None
    """Reads expressions from images."""


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
    """The file of a run folder that says what its expression encoder is."""
    onnx = workdir / ONNX_EXPRESSION_FILE
    return onnx if onnx.exists() else workdir / EXPRESSION_FILE


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def read_encoders(config: ModelConfig, workdir: Path) -> FaceEncoders:
    """The encoders in a run folder.

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


def claim_prototypes(
    workdir: Path, images: Sequence[Example], people: Sequence[str], encoder: ExpressionEncoder
) -> WordPrototypes:
    """The word prototypes of a run, learned when it begins from the images of the people it trains on.

    Args:
        workdir: folder of the run; the bank is written there.
        images: labelled images with the encoder's vectors.
        people: names of the people that are trained on.
        encoder: the expression encoder.

    Raises:
        DataError: as `WordPrototypes.fit` and `read`, or the bank there is of another encoder.
    """
    path = workdir / PROTOTYPES_FILE
    if not path.exists():
        known = set(people)
        chosen = [image for image in images if image.identity in known]
        labels = {label: parse_expression(label) for label in {p.label for p in chosen}}
        vectors: Float[np.ndarray, "n W"] = np.stack([p.expression for p in chosen])
        WordPrototypes.fit(
            [labels[p.label] for p in chosen], vectors, encoder=encoder.name, encoder_checksum=encoder.checksum
        ).write(path)
    return read_prototypes(workdir, encoder)


def read_prototypes(workdir: Path, encoder: ExpressionEncoder) -> WordPrototypes:
    """The word prototypes in a run folder.

    Raises:
        DataError: it is missing or damaged, or of another encoder.
    """
    prototypes = WordPrototypes.read(workdir / PROTOTYPES_FILE)
    prototypes.check(encoder.name, encoder.checksum)
    return prototypes


def _require_width(field: str, width: int, encoder: IdentityEncoder | ExpressionEncoder) -> None:
    if width != encoder.width:
        raise ConfigError(f"conditioning.{field}={width}: must be {encoder.width}, the width of {encoder.name}")
