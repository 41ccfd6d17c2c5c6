"""The block cache: exact where nothing moved, less work, the same for every cut of a set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from genaffect_jax.checkpoints.components import FaceEncoders
from genaffect_jax.config import DenoiserRun, MMDiTConfig
from genaffect_jax.data.photos.reader import PhotoReader
from genaffect_jax.errors import ConfigError
from genaffect_jax.expressions.space import UnitSpace
from genaffect_jax.inference import program as generation
from genaffect_jax.inference.program import IMAGES
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.mmdit import block as mmdit_block
from genaffect_jax.models.mmdit.block_cache import BlockCache, middle_blocks
from genaffect_jax.models.mmdit.consistent_attention import Sharing, Tokens
from genaffect_jax.pipeline import Pipeline

WORDS = "joy, anger, fear, pride, sadness"


def random_pipeline(config: DenoiserRun) -> Pipeline:
    """A model of 5 blocks with random weights; zeros would let branches and modulations do nothing."""
    networks = build_networks(dataclasses.replace(config.model, mmdit=deeper(config.model.mmdit)))
    rng = np.random.default_rng(0)
    parameters = [
        {name: jnp.asarray(0.1 * rng.standard_normal(shape.shape, np.float32)) for name, shape in n.shapes.items()}
        for n in networks
    ]
    model = dataclasses.replace(config.model, mmdit=deeper(config.model.mmdit))
    return Pipeline(
        dataclasses.replace(config, model=model),
        *parameters,
        "random",
        None,
        FaceEncoders(None, None),
        UnitSpace(),
        PhotoReader("none"),
        Mesh(np.array(jax.devices()[:1]), (IMAGES,)),
    )


def deeper(sizes: MMDiTConfig) -> MMDiTConfig:
    return dataclasses.replace(sizes, num_layers=5)


@pytest.fixture(scope="module")
def pipeline_of_numbers(tiny_config):
    return random_pipeline(tiny_config)


@pytest.fixture
def pipeline(pipeline_of_numbers, monkeypatch):
    """Its images are the decoder's numbers, before they are rounded to 255 levels."""
    monkeypatch.setattr(generation, "to_uint8", lambda x: x)
    return pipeline_of_numbers


@pytest.mark.parametrize(("count", "middle"), [(3, (1, 2)), (5, (1, 4)), (8, (2, 6)), (24, (6, 18)), (38, (9, 29))])
def test_the_middle_is_half_of_the_blocks_and_never_the_first_or_the_last(count: int, middle: tuple[int, int]) -> None:
    assert middle_blocks(count) == middle


def test_a_network_without_a_middle_is_named() -> None:
    with pytest.raises(ValueError, match="a network of 2 blocks has no middle"):
        middle_blocks(2)


@pytest.mark.parametrize("dual", [(), (0, 1)])
def test_caching_what_the_same_inputs_gave_is_the_whole_network(tiny_model, dual: tuple[int, ...]) -> None:
    sizes = dataclasses.replace(tiny_model.mmdit, num_layers=5, dual_attention_layers=dual)
    config = dataclasses.replace(tiny_model, mmdit=sizes)
    network = build_networks(config)[0]
    rng = np.random.default_rng(1)
    # No zeros: new branches and modulations would do nothing.
    parameters = {n: jnp.asarray(0.1 * rng.standard_normal(s.shape, np.float32)) for n, s in network.shapes.items()}
    model = network.merge(parameters)
    side, channels = sizes.sample_size, sizes.in_channels
    latents = jax.random.normal(jax.random.key(2), (1, 3, side, side, channels))
    conditions = model.encode_conditions(
        jax.random.normal(jax.random.key(3), (1, 1, side, side, channels)),
        jnp.ones((1, 1), bool),
        jnp.ones((1, 3, config.conditioning.expression_width)),
    )
    length = (side // sizes.patch_size) ** 2
    order = jnp.broadcast_to(jnp.arange(length), (5, length))
    sharing = Sharing(Tokens(order[:, : length // 2], order[:, length // 2 :]), anchors=2, keep_pool=True)

    @jax.jit
    def evaluate(latents, block_cache):
        timestep = jnp.full((1, 3), 0.5)
        return model(latents, timestep, conditions, sharing=sharing, block_cache=block_cache)

    whole = evaluate(latents, None)
    first = evaluate(latents, BlockCache())
    np.testing.assert_allclose(first.prediction, whole.prediction, atol=1e-5)
    assert whole.block_deltas is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first.anchor_kv, whole.anchor_kv)
    hit = BlockCache(jnp.array(True), first.block_deltas)
    again = evaluate(latents, hit)
    np.testing.assert_allclose(again.prediction, whole.prediction, atol=1e-5)
    np.testing.assert_array_equal(again.block_deltas[0], first.block_deltas[0])
    moved = evaluate(latents + 0.1, hit).prediction
    computed = evaluate(latents + 0.1, BlockCache(jnp.array(False), first.block_deltas)).prediction
    np.testing.assert_allclose(computed, evaluate(latents + 0.1, None).prediction, atol=1e-5)
    assert np.abs(moved - computed).max() > 1e-3


def test_images_with_a_block_cache_are_near_and_depend_on_no_cut_of_the_set(pipeline) -> None:
    def draw(**settings):
        settings = {"steps": 4, "anchors": 2, "consistency": 0.5, "chunk": 2, **settings}
        return np.asarray(pipeline("seed:2", WORDS, **settings).images)

    whole, cached = draw(), draw(block_cache_interval=2)
    assert 1e-4 < np.abs(whole - cached).mean() < 0.2
    for settings in ({"chunk": 8}, {"kv_cache": "always"}, {"kv_cache": "never"}):
        np.testing.assert_allclose(draw(block_cache_interval=2, **settings), cached, atol=1e-5)


def test_the_middle_blocks_run_only_where_they_are_computed(tiny_config, monkeypatch) -> None:
    ran: list[int] = []
    set_attention = mmdit_block.set_attention

    def counting(*arguments):
        jax.debug.callback(lambda: ran.append(1))
        return set_attention(*arguments)

    monkeypatch.setattr(mmdit_block, "set_attention", counting)
    pipeline = random_pipeline(tiny_config)
    count = pipeline.config.model.mmdit.num_layers
    first, last = middle_blocks(count)
    for interval, computed in ((1, 4), (2, 2), (3, 2), (9, 1)):
        ran.clear()
        pipeline("seed:2", "joy, anger", steps=4, block_cache_interval=interval)
        jax.effects_barrier()
        assert len(ran) == 4 * (count - (last - first)) + computed * (last - first), interval


def test_what_does_not_go_together_is_named(pipeline) -> None:
    with pytest.raises(ConfigError, match="block_cache_interval=0: must be at least 1"):
        pipeline("seed:2", "joy", block_cache_interval=0)
    with pytest.raises(ConfigError, match="block_cache_interval=2: cannot be combined with guidance_interval"):
        pipeline("seed:2", "joy", block_cache_interval=2, guidance_interval=(0.2, 0.8))


def test_a_model_of_too_few_blocks_is_named(trained_workdir) -> None:
    with pytest.raises(
        ConfigError, match="block_cache_interval=2: the model has 2 blocks, a block cache needs at least 3"
    ):
        Pipeline.load(trained_workdir, devices=jax.devices()[:1])("seed:2", "joy", block_cache_interval=2)
