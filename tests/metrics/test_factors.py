"""Figures of the two factors: by hand the same, and refused where they would mean nothing."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.metrics.factors import factor_figures
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder, build_encoder

SMALL = {"image_size": 16, "widths": (8, 8), "depths": (0, 0), "norm_num_groups": 4, "hidden": 8, "neck": 4}


def encoder(target, width):
    config = FaceEncoderConfig(target=target, width=width, **SMALL)
    network, rng = build_encoder(config), np.random.default_rng(0)
    parameters = {
        name: jnp.asarray(
            rng.standard_normal(s.shape) * np.prod(s.shape[:-1]) ** -0.5 + name.endswith("scale"), s.dtype
        )
        for name, s in network.shapes.items()
    }
    return AvatarEncoder(
        name=f"{target}_judge",
        licence="Apache-2.0",
        checksum="0" * 64,
        config=config,
        network=network,
        parameters=parameters,
    )


@pytest.fixture(scope="module")
def encoders():
    return encoder("identity", 12), encoder("expression", 40)


def test_figures_are_the_mean_cosine_and_the_mean_absolute_error(encoders):
    identity, expression = encoders
    rng = np.random.default_rng(0)
    references, images = rng.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    read = expression(images)
    found = factor_figures(identity, expression, references, images, read + np.float32(0.2), references)
    assert found.expression_error == pytest.approx(0.2, abs=1e-6)
    one_by_one = [float(identity(r[None])[0] @ identity(p[None])[0]) for r, p in zip(references, images, strict=True)]
    assert found.identity_cosine == pytest.approx(np.mean(one_by_one), abs=1e-5)
    cosines = identity(references) @ identity(references).T
    assert found.stranger_cosine == pytest.approx(cosines[np.triu_indices(3, 1)].mean(), abs=1e-5)
    with pytest.raises(ValueError, match="groups of 1 images"):
        factor_figures(identity, expression, references, images, read, references[:1])
    with pytest.raises(ValueError, match="3 images, 2 references"):
        factor_figures(identity, expression, references[:2], images, read, references)
    with pytest.raises(ValueError, match="vectors of 39 numbers, expression_judge gives 40"):
        factor_figures(identity, expression, references, images, read[:, :39], references)
    assert dataclasses.asdict(found)["images"] == 3
