"""Tiled encoding and decoding: one tile is the plain result, weights add to one, memory does not grow."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import AutoencoderConfig
from genaffect_jax.inference import program as generation
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.autoencoder.tiling import Tiles, decode_tiled, encode_tiled
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional, Parameters

CONFIG = AutoencoderConfig(block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4)
NETWORK = Functional(lambda rngs: AutoencoderKL(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(
            np.prod(s.shape[:-1]) ** -0.5 * rng.standard_normal(s.shape) + name.endswith("scale"), s.dtype
        )
        for name, s in NETWORK.shapes.items()
    }


class Doubling:
    """Stands in for the autoencoder where every pixel is on its own, so tiles must change nothing at all."""

    config = CONFIG

    def decode(self, z: jax.Array) -> jax.Array:
        return jnp.repeat(jnp.repeat(z[..., :3], 2, -3), 2, -2)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(5, 8, 2), (8, 8, 2), (9, 8, 2), (17, 8, 7), (131, 64, 16)])
def test_tiles_of_one_size_cover_the_axis_with_enough_overlap_and_weights_that_add_to_one(length, tile, overlap):
    tiles = Tiles.cover(length, tile, overlap)
    starts, size = np.array(tiles.starts), tiles.size
    assert size == min(tile, length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert (starts[:-1] + size - starts[1:] >= overlap).all()
    total = np.zeros(3 * length)
    for start, weights in zip(starts, tiles.weights(3), strict=True):
        assert (weights > 0).all()
        total[3 * start : 3 * (start + size)] += weights
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(ValueError, match=r"overlap 8 must lie in 0\.\.7"):
        Tiles.cover(20, 8, 8)


@pytest.mark.parametrize("shape", [(2, 9, 14, 4), (13, 5, 4), (2, 1, 8, 21, 4)])
def test_tiles_land_where_they_were_taken_for_non_square_odd_and_batched_latents(shape):
    z = jax.random.normal(jax.random.key(1), shape)
    np.testing.assert_allclose(decode_tiled(Doubling(), z, 8, 3), Doubling().decode(z), atol=1e-6)


def test_one_tile_that_covers_everything_is_the_plain_program():
    def program(function, shape):
        return str(jax.make_jaxpr(lambda p, x: function(NETWORK.merge(p), x))(NETWORK.shapes, jnp.zeros(shape)))

    latents, images = (2, 6, 7, 4), (2, 12, 14, 3)
    plain = program(AutoencoderKL.decode, latents)
    assert program(lambda model, z: decode_tiled(model, z, 8, 2), latents) == plain
    assert program(lambda model, z: decode_tiled(model, z, 6, 2), latents) != plain
    plain = program(AutoencoderKL.encode, images)
    assert program(lambda model, x: encode_tiled(model, x, 8, 2), images) == plain
    assert program(lambda model, x: encode_tiled(model, x, 6, 2), images) != plain


def test_tiled_results_stay_near_the_plain_ones(parameters):
    z = jax.random.normal(jax.random.key(1), (1, 20, 27, 4))

    @jax.jit
    def both(parameters, z):
        model = NETWORK.merge(parameters)
        plain = model.decode(z)
        return plain, decode_tiled(model, z, 16, 8), model.encode(plain).mean, encode_tiled(model, plain, 16, 8).mean

    image, tiled_image, latents, tiled_latents = both(parameters, z)
    for plain, tiled in ((image, tiled_image), (latents, tiled_latents)):
        assert tiled.shape == plain.shape
        error = float(jnp.abs(tiled - plain).mean() / jnp.std(plain))
        # Not zero: statistics and attention are those of a tile. Random images differ by 1.1.
        assert 0 < error < 0.5


def test_memory_beyond_the_image_itself_does_not_grow_with_the_image(parameters):
    def scratch(side: int, *, tiled: bool) -> int:
        def decode(parameters, z):
            model = NETWORK.merge(parameters)
            return decode_tiled(model, z, 8, 2) if tiled else model.decode(z)

        latents = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
        memory = jax.jit(decode).lower(NETWORK.shapes, latents).compile().memory_analysis()
        # The canvas is kept twice at most: once in the loop, once as the result.
        return memory.temp_size_in_bytes - memory.output_size_in_bytes

    small, large = scratch(16, tiled=True), scratch(64, tiled=True)
    assert large < 1.1 * small
    assert scratch(64, tiled=False) > 10 * scratch(16, tiled=False)


def test_encoding_refuses_what_plain_encoding_refuses(parameters):
    with pytest.raises(ValueError, match="multiples of 2"):
        encode_tiled(NETWORK.merge(parameters), jnp.zeros((1, 17, 40, 3)), 8, 2)


@pytest.mark.parametrize(("threshold", "tiled"), [(32, True), (33, False)])
def test_sampling_decodes_in_tiles_from_the_stated_size_on(tiny_model, monkeypatch, threshold, tiled):
    seen = []

    def recorded(model, z):
        seen.append(z.shape)
        return decode_tiled(model, z)

    monkeypatch.setattr(generation, "TILED_FROM", threshold)
    monkeypatch.setattr(generation, "decode_tiled", recorded)
    denoiser, autoencoder = build_networks(tiny_model)
    program = generation.make_program(tiny_model, denoiser, autoencoder)
    inputs = generation.SetInputs(
        jnp.zeros((1, 1, 32, 32, 3), jnp.uint8), jnp.ones((1, 1), bool), jnp.zeros((1, 2, 40)), jnp.zeros((1, 2), int)
    )
    params = generation.SamplerParams.plain(tiny_model.mmdit.num_layers, np.linspace(1, 0, 3, dtype=np.float32), 2)
    drawn, *_ = jax.eval_shape(
        functools.partial(program, spec=generation.SamplerSpec()),
        denoiser.shapes,
        {"autoencoder": autoencoder.shapes},
        inputs,
        params,
    )
    assert drawn.shape == (1, 2, 32, 32, 3)
    assert seen == ([(1, 2, 8, 8, 4)] if tiled else [])
