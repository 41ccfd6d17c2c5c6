"""The expression space of a model in a run folder: vectors of words and image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from genaffect_jax.checkpoints.components import FaceEncoders, read_prototypes
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.face_encoders import ExpressionEncoder
from genaffect_jax.data.photos.reader import PhotoReader
from genaffect_jax.errors import ConfigError, DataError, ExpressionError
from genaffect_jax.expressions.action_units import WIDTH
from genaffect_jax.expressions.space import EncoderSpace, ExpressionSpace, UnitSpace
from genaffect_jax.models.face_encoders.encoder import load_exemplar_encoder


def open_expression_space(
    config: DenoiserRun,
    run_dir: RunDir,
    faces: FaceEncoders,
    given: str | ExpressionEncoder | None,
    photos: PhotoReader,
) -> ExpressionSpace:
    """The model's vectors of words and image files.

    Args:
        config: the run.
        run_dir: its folder.
        faces: the model's own face encoders.
        given: reads image files in place of the model's own encoder.
        photos: reads image files.

    Raises:
        ConfigError: the encoder's vectors do not fit the model.
        WeightsError, DataError: the encoder or the word prototypes are missing or damaged.
    """
    own: ExpressionEncoder | None = faces.expression
    encoder = load_exemplar_encoder(given) if isinstance(given, str) else given or own

    def read(file: str) -> Float32[np.ndarray, " W"]:
        if encoder is None:
            raise ExpressionError(
                f"expression '{file}': an image needs an expression encoder, and this model has none; set "
                "expression_encoder ('package:expression_avatar' reads procedural avatars)"
            )
        try:
            image = photos.largest(Path(file), config.model.image_size)
        except DataError as e:
            raise ExpressionError(f"expression '{file}': {e}") from e
        return encoder(image[None])[0]

    if config.model.conditioning.expression_space == "units":
        if encoder is not None and encoder.width != WIDTH:
            reason = f"gives {encoder.width} numbers, this model's expressions are {WIDTH} action units"
            raise ConfigError(reason, field="expression_encoder", found=encoder.name)
        return UnitSpace(read)
    if own is None or encoder is None or encoder.checksum != own.checksum:
        raise ConfigError(
            "this model's expressions are vectors of its own encoder; leave it out", field="expression_encoder"
        )
    prototypes = read_prototypes(run_dir, own)
    return EncoderSpace(prototypes.encoder, prototypes.vectors, read)
