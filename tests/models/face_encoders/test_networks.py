"""Networks, weights and protocols of the face encoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config.encoders import EncoderRun, FaceEncoderConfig
from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.expressions.action_units import LOWEST
from genaffect_jax.io.weight_file import checksum, save_weights
from genaffect_jax.models.face_encoders import networks as face_encoders
from genaffect_jax.models.face_encoders.encoder import build_encoder, load_expression_encoder, load_identity_encoder

SMALL = {"image_size": 16, "widths": (8, 8), "norm_num_groups": 4, "hidden": 8, "neck": 4}
IDENTITY = FaceEncoderConfig(target="identity", depths=(1, 1), width=12, **SMALL)
EXPRESSION = FaceEncoderConfig(
    target="expression", architecture="transformer", depths=(0, 1), heads=2, width=40, **SMALL
)


def draw(config, scale=1.0):
    """Parameters drawn with numpy: quicker than compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = build_encoder(config).shapes
    return {
        name: jnp.asarray(
            scale * rng.standard_normal(s.shape) * np.prod(s.shape[:-1]) ** -0.5 + name.endswith("scale"), jnp.float32
        )
        for name, s in shapes.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    header = {"licence": "Apache-2.0"}
    save_weights(draw(IDENTITY), folder / "id.safetensors", "bfloat16", IDENTITY, {"name": "who", **header})
    save_weights(draw(EXPRESSION, 3.0), folder / "ex.safetensors", "bfloat16", EXPRESSION, {"name": "what", **header})
    save_weights(draw(IDENTITY), folder / "bare.safetensors", "bfloat16", IDENTITY, {"name": "who"})
    return folder


@pytest.fixture(scope="module")
def identity(files):
    return load_identity_encoder(str(files / "id.safetensors"))


@pytest.fixture(scope="module")
def expression(files):
    return load_expression_encoder(str(files / "ex.safetensors"))


def images(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_encoders_follow_their_protocols_and_name_their_weights(identity, expression, files):
    assert isinstance(identity, IdentityEncoder)
    assert isinstance(expression, ExpressionEncoder)
    assert (identity.name, identity.width, identity.licence) == ("who", 12, "Apache-2.0")
    assert identity.checksum == checksum(files / "id.safetensors")
    assert expression.width == 40
    assert identity.checksum != expression.checksum


def test_identity_vectors_have_length_one_and_depend_on_the_image(identity):
    vectors = identity(images(3, 16))
    assert (vectors.shape, vectors.dtype) == ((3, 12), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_expression_vectors_stay_in_the_channels_ranges(expression):
    raw = jax.jit(lambda p, x: expression.network.merge(p)(x))(expression.parameters, images(3, 16) / 127.5 - 1.0)
    assert float(raw.max()) > 1.0  # else clipping would not show
    vectors = expression(images(3, 16))
    assert np.all(vectors >= LOWEST)
    assert np.all(vectors <= 1.0)


def test_images_of_a_batch_do_not_mix_and_odd_counts_are_filled_up(identity):
    many = images(5, 16)
    together = identity(many)
    np.testing.assert_allclose(together[4:], identity(many[4:]), atol=1e-5)
    assert identity(many[:0]).shape == (0, 12)


@pytest.mark.parametrize("side", [8, 16, 40])
def test_a_smooth_image_gives_the_same_vector_at_any_size(identity, side):
    ramp = np.linspace(20, 220, side * 4).reshape(side, 4).mean(1)
    image = np.broadcast_to(ramp[:, None, None], (side, side, 3)).astype(np.uint8)[None]
    fine = np.linspace(20, 220, 64).reshape(16, 4).mean(1)
    expected = identity(np.broadcast_to(fine[:, None, None], (16, 16, 3)).astype(np.uint8)[None])
    assert (identity(image) @ expected.T).item() > 0.99


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = jnp.broadcast_to(jnp.arange(64)[:, None, None] % 2, (1, 64, 64, 3)).astype(jnp.float32)
    shrunk = face_encoders.resize(stripes, 16)[:, 2:-2]
    np.testing.assert_allclose(shrunk, 0.5, atol=0.05)
    assert face_encoders.resize(stripes, 64) is stripes


def test_gradients_reach_the_image_through_the_pure_form(identity, expression):
    for encoder in (identity, expression):

        def loss(x, encoder=encoder):
            return encoder.network.merge(encoder.parameters)(x)[0, 0]

        gradient = jax.jit(jax.grad(loss))(jnp.asarray(images(1, 16) / 127.5 - 1.0))
        assert np.isfinite(gradient).all()
        assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), TypeError, "float32, must be uint8"),
        (np.zeros((1, 16, 8, 3), np.uint8), ValueError, r"\(1, 16, 8, 3\)"),
        (np.zeros((16, 16, 3), np.uint8), ValueError, "must be"),
        (np.zeros((1, 16, 16, 4), np.uint8), ValueError, "must be"),
    ],
)
def test_other_arrays_are_refused(identity, bad, error, words):
    with pytest.raises(error, match=words):
        identity(bad)


def test_the_wrong_file_is_refused_with_what_it_holds(files):
    with pytest.raises(WeightsError, match="an encoder of expression; one of identity is needed"):
        load_identity_encoder(str(files / "ex.safetensors"))
    with pytest.raises(WeightsError, match="no entry licence"):
        load_identity_encoder(str(files / "bare.safetensors"))
    with pytest.raises(WeightsError, match="package:autoencoder_tiny"):
        load_identity_encoder("package:nobody")
    with pytest.raises(WeightsError, match="header entry 'config'"):
        load_identity_encoder("package:autoencoder_tiny")


def test_the_two_pairs_have_different_trunks_and_are_small():
    for target in ("identity", "expression"):
        pair = [getattr(FaceEncoderConfig, f"{target}_{role}")() for role in ("avatar", "evaluator")]
        assert pair[0].image_size != pair[1].image_size or pair[0].architecture != pair[1].architecture
        first, second = (build_encoder(config).shapes for config in pair)
        assert not {
            n for n in first.keys() & second.keys() if n.startswith("trunk") and first[n].shape == second[n].shape
        }
        for config in pair:
            assert build_encoder(config).size * 2 < 6e6  # bytes in bfloat16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (1,)}, "one entry per entry of widths"),
        ({"widths": (8, 10)}, "norm_num_groups"),
        ({"image_size": 18}, "multiple of 2"),
        ({"architecture": "transformer", "depths": (1, 1)}, "the others must be 0"),
        ({"architecture": "transformer", "depths": (0, 1), "heads": 3}, "encoder.heads=3"),
    ],
)
def test_impossible_networks_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(IDENTITY, **changes)


def test_an_expression_encoder_needs_one_number_per_channel():
    with pytest.raises(ConfigError, match=r"encoder.width=39: must be 40"):
        build_encoder(dataclasses.replace(EXPRESSION, width=39))
    with pytest.raises(ConfigError, match="lower-case letters"):
        EncoderRun(name="Who?")
