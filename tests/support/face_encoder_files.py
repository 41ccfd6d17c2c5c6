"""Weight files of small face encoders with random weights, one or more of each architecture."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from genaffect_jax.config.encoders import ARCFACE_CROP, FaceEncoderConfig
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.face_encoders.encoder import build_encoder
from genaffect_jax.models.functional import Parameters

HEADER = {"name": "small", "licence": "Apache-2.0", "training": '{"seed": 3}'}
_SMALL = {"norm_num_groups": 4, "hidden": 12, "neck": 6, "width": 40}
CONFIGS = {
    # The second resolution has no block but a change of width, the third has neither.
    "residual": FaceEncoderConfig(
        image_size=32, widths=(8, 16, 16, 24), depths=(1, 0, 0, 2), crop=(0.1, 0.03, 0.8), **_SMALL
    ),
    "residual_expression": FaceEncoderConfig(
        target="expression", image_size=16, widths=(8, 8), depths=(0, 1), **_SMALL
    ),
    "transformer": FaceEncoderConfig(
        target="expression", architecture="transformer", image_size=16, widths=(8, 16), depths=(0, 2), heads=2, **_SMALL
    ),
    "transformer_identity": FaceEncoderConfig(
        architecture="transformer", image_size=8, widths=(16,), depths=(1,), crop=(0.0, 0.25, 0.5), **_SMALL
    ),
    "iresnet": FaceEncoderConfig(
        architecture="iresnet", image_size=16, widths=(8, 12), depths=(2, 1), crop=ARCFACE_CROP, **_SMALL
    ),
    "iresnet_whole": FaceEncoderConfig(architecture="iresnet", image_size=8, widths=(8,), depths=(3,), **_SMALL),
}


def random_weights(config: FaceEncoderConfig) -> Parameters:
    """No bias stays zero and no scale one, where a forgotten one would not show."""
    rng = np.random.default_rng(0)
    parameters = {}
    for name, s in build_encoder(config).shapes.items():
        value = rng.standard_normal(s.shape) * (np.prod(s.shape[:-1]) ** -0.5 if len(s.shape) > 1 else 0.3)
        parameters[name] = jnp.asarray(value + name.endswith("scale"), jnp.float32)
    return parameters


def random_file(config: FaceEncoderConfig, path: Path, dtype: str = "float32") -> Parameters:
    """Writes random weights with `HEADER`, and returns them."""
    parameters = random_weights(config)
    save_weights(parameters, path, dtype, config, HEADER)
    return parameters
