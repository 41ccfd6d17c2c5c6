"""The networks of cached features as one function of a batch: the numbers of each by itself, on one device or eight."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from support.face_encoder_files import CONFIGS, random_file

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.config import ConditioningConfig, DataConfig, DenoiserRun
from genaffect_jax.models.autoencoder.model import normalise
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.training.denoiser import features
from genaffect_jax.training.denoiser.features import call_size, make_encode

GIB = 2**30


@pytest.fixture(scope="module")
def config(tiny_model) -> DenoiserRun:
    model = dataclasses.replace(
        tiny_model,
        conditioning=ConditioningConfig(expression_space="encoder", identity_embedding=40),
        identity_encoder="identity.safetensors",
        expression_encoder="expression.safetensors",
    )
    return DenoiserRun(data=DataConfig(image_size=32, cache_latents=True), model=model)


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> FaceEncoders:
    folder = tmp_path_factory.mktemp("encoders")
    for name in ("residual", "residual_expression"):
        random_file(CONFIGS[name], folder / f"{name}.safetensors")
    return FaceEncoders(
        load_identity_encoder(str(folder / "residual.safetensors")),
        load_expression_encoder(str(folder / "residual_expression.safetensors")),
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def autoencoder(config):
    network = build_networks(config.model)[1]
    return network, network.init(jax.random.key(0))


def test_results_are_to_the_bit_those_of_each_network_rounded_to_float16(config, faces, autoencoder, images):
    network, parameters = autoencoder
    encode = make_encode(config, faces, network, parameters, jax.local_devices()[:1])
    found = {name: np.asarray(array) for name, array in encode(images).items()}
    latents = jax.jit(lambda p, x: network.merge(p).to_latents(normalise(x)))(parameters, images)
    expected = {"latents": latents, "embedding": faces.identity(images), "expression": faces.expression(images)}
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float16
        np.testing.assert_array_equal(found[name], np.asarray(array).astype(np.float16))
    assert (found["expression"] == 0).any()  # clipped


def test_eight_devices_share_the_batch_and_give_the_numbers_of_one(config, faces, autoencoder, images):
    one, eight = (make_encode(config, faces, *autoencoder, jax.local_devices()[:n])(images) for n in (1, 8))
    for name, array in eight.items():
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {1}
        np.testing.assert_allclose(np.asarray(array), np.asarray(one[name]), atol=2e-3)


def test_results_outside_the_range_of_float16_stay_visible(config, faces, autoencoder, images):
    network, parameters = autoencoder
    large = {**parameters, "encoder.conv_out.kernel": 1e6 * parameters["encoder.conv_out.kernel"]}
    found = make_encode(config, FaceEncoders(None, None), network, large, jax.local_devices()[:1])(images)
    assert not np.isfinite(np.asarray(found["latents"])).all()


@pytest.mark.parametrize(
    ("side", "channels", "memory", "size"),
    [(256, 32, 104 * GIB, 256), (512, 128, 104 * GIB, 64), (1024, 128, 16 * GIB, 4), (4096, 512, 1 * GIB, 1)],
)
def test_calls_on_accelerators_are_as_large_as_memory_allows(config, monkeypatch, side, channels, memory, size):
    monkeypatch.setattr(features, "device_memory", lambda: memory)
    sized = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, image_size=side),
        model=dataclasses.replace(
            config.model,
            mmdit=dataclasses.replace(config.model.mmdit, sample_size=side // 4, pos_embed_max_size=side),
            autoencoder=dataclasses.replace(config.model.autoencoder, block_out_channels=(channels, 8, 16)),
        ),
    )
    assert call_size(sized) == 64
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert call_size(sized) == size
    pixels = dataclasses.replace(sized, data=dataclasses.replace(sized.data, cache_latents=False))
    assert call_size(pixels) == 256
