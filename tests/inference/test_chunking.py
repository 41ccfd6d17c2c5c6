"""Sets that share: images that depend on their anchors and on nothing else, in bounded memory."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from genaffect_jax import sample
from genaffect_jax.errors import ConfigError, DataError, MemoryLimitError
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.expressions.interpolation import morph_expressions
from genaffect_jax.inference import program as generation
from genaffect_jax.inference.avatar_set import AvatarSet
from genaffect_jax.pipeline import Pipeline

WORDS = "joy, anger, fear, pride, sadness, surprise, AU12L=0.7"


@pytest.fixture(scope="module")
def pipeline(trained_workdir):
    return Pipeline.load(trained_workdir, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def pipelines(trained_workdir):
    """One pipeline for each number of devices: what one test has compiled, the next has."""
    return functools.cache(lambda devices: Pipeline.load(trained_workdir, devices=jax.devices()[:devices]))


@pytest.fixture
def floats(pipelines, monkeypatch):
    """Pipelines whose images are the decoder's numbers, about -1 to 1, before they are rounded to 255 levels."""
    monkeypatch.setattr(generation, "to_uint8", lambda x: x)
    return lambda devices=1: pipelines(devices)


def draw(pipeline, expressions=WORDS, **settings):
    shared = {"steps": 3, "consistency": 0.5, "anchors": 2, "chunk": 3}
    return pipeline("seed:2", expressions, **{**shared, **settings}).images


def difference(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


def test_an_image_depends_on_its_anchors_only(floats):
    pipeline = floats()
    together = draw(pipeline)
    assert difference(draw(pipeline, chunk=1), together) < 1e-5
    assert difference(draw(pipeline, chunk=8), together) < 1e-5
    backwards = "joy, anger, AU12L=0.7, surprise, sadness, pride, fear"
    assert difference(draw(pipeline, backwards), together[[0, 1, 6, 5, 4, 3, 2]]) < 1e-5
    # One image of the set again, alone: beside the same anchors.
    again = draw(pipeline, "pride", anchors=None, anchor_expressions="joy, anger")
    assert difference(again, together[3:4]) < 1e-5
    assert (
        difference(draw(pipeline, "pride, anger", anchors=None, anchor_expressions="joy, anger")[1], together[1]) < 1e-5
    )
    # And it does depend on them.
    assert difference(draw(pipeline, "pride", anchors=None, anchor_expressions="joy, fear"), together[3:4]) > 1e-3
    assert difference(draw(pipeline, "pride", anchors=1), together[3:4]) > 1e-3


def test_a_kept_kv_cache_gives_the_images_of_recomputed_anchors(floats):
    pipeline = floats()
    for settings in ({}, {"solver": "heun", "consistency_start": 1, "guidance": 3.0}):
        kept, recomputed = (draw(pipeline, kv_cache=kv_cache, **settings) for kv_cache in ("always", "never"))
        assert difference(kept, recomputed) < 1e-5, settings


def test_the_images_do_not_depend_on_the_number_of_devices(floats):
    one = draw(floats(1))
    for kv_cache in ("always", "never"):
        assert difference(draw(floats(4), kv_cache=kv_cache), one) < 1e-5
    assert difference(draw(floats(4), consistency=0, chunk=1), draw(floats(1), consistency=0)) < 1e-5


def test_no_sharing_and_a_set_of_one_are_plain_attention_to_the_bit(floats):
    pipeline = floats()
    apart = draw(pipeline, "joy, anger", consistency=0.0)
    np.testing.assert_array_equal(draw(pipeline, "joy, anger", consistency=0.001), apart)  # rounds to no token
    alone = draw(pipeline, "joy", anchors=None, consistency=0.0)
    for consistency in (0.5, 1.0):
        np.testing.assert_array_equal(draw(pipeline, "joy", anchors=None, consistency=consistency), alone)
    assert difference(draw(pipeline, "joy, anger"), apart) > 1e-3


def test_sharing_can_be_limited_to_layers_and_steps(floats):
    pipeline = floats()
    words = "joy, anger"
    everywhere, apart = draw(pipeline, words), draw(pipeline, words, consistency=0.0)
    assert difference(draw(pipeline, words, consistency_layers=(0, 1)), everywhere) < 1e-5
    assert difference(draw(pipeline, words, consistency_end=3), everywhere) < 1e-5
    partial = [
        draw(pipeline, words, consistency_layers=(1,)),
        draw(pipeline, words, consistency_start=1),
        draw(pipeline, words, consistency_end=1),
    ]
    programs = len(pipeline.sampler.compiled)
    for limited in partial:
        assert min(difference(limited, everywhere), difference(limited, apart)) > 1e-4
    draw(pipeline, words, consistency_layers=(0,), consistency_start=1, consistency_end=2, steps=4)
    assert len(pipeline.sampler.compiled) == programs


def test_which_tokens_are_shared_can_be_chosen(floats, tmp_path):
    pipeline = floats()
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save(tmp_path / "face.png")
    Image.fromarray(0 * mask).save(tmp_path / "dark.png")
    drawn = [
        draw(pipeline, **settings)
        for settings in (
            {},
            {"seed": 1},
            {"shared_mask": tmp_path / "face.png"},
        )
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert difference(one, other) > 1e-4
    with pytest.raises(ConfigError, match=r"shared_mask=.*dark\.png: no part is bright"):
        draw(pipeline, shared_mask=tmp_path / "dark.png")
    with pytest.raises(ConfigError, match=r"shared_mask=.*none\.png: cannot be opened"):
        draw(pipeline, shared_mask=tmp_path / "none.png")


def test_guidance_in_an_interval_equals_guidance_where_it_acts(floats):
    pipeline = floats()
    full, none = draw(pipeline, guidance=3.0), draw(pipeline, guidance=1.0)
    # The noise levels of three steps are 1, 0.5005 and 0.001.
    assert difference(draw(pipeline, guidance=3.0, guidance_interval=(0.001, 0.99)), full) > 1e-4
    assert difference(draw(pipeline, guidance=3.0, guidance_interval=(0.0005, 1.0)), full) < 1e-5
    assert difference(draw(pipeline, guidance=3.0, guidance_interval=(0.6, 0.9)), none) < 1e-5
    with pytest.raises(ConfigError, match="kv_cache=always: cannot be combined with guidance_interval"):
        draw(pipeline, guidance_interval=(0.2, 0.9), kv_cache="always")


def test_shared_noise_starts_every_image_of_the_set_alike(floats):
    pipeline = floats()
    alike = draw(pipeline, "joy, 0.999*joy", consistency=0.0, set_seed_noise="shared")
    apart = draw(pipeline, "joy, 0.999*joy", consistency=0.0)
    assert difference(*alike) < 0.2 * difference(*apart)


def test_memory_does_not_grow_with_the_set(pipeline):
    draw(pipeline, WORDS, kv_cache="never")
    programs = len(pipeline.sampler.compiled)
    draw(pipeline, "joy, anger, joy/*", kv_cache="never")
    assert len(pipeline.sampler.compiled) == programs  # so no call has more images than before


def test_too_little_memory_is_one_error_that_names_the_settings(pipeline, monkeypatch):
    monkeypatch.setattr("genaffect_jax.inference.chunking.device_memory", lambda: 2**20)
    with pytest.raises(MemoryLimitError, match=r"2 images at once needs .* GiB .* lower chunk, anchors"):
        draw(pipeline, kv_cache="never", seed=3, consistency=0.4)


def test_an_added_image_equals_the_one_of_a_larger_set(pipeline, tmp_path):
    larger = pipeline("seed:2", "joy, anger, fear, pride", steps=2, consistency=0.5, anchors=2, seed=5)
    pipeline("seed:2", "joy, anger, fear", steps=2, consistency=0.5, anchors=2, seed=5).save(tmp_path / "set")
    grown = pipeline.add(AvatarSet.load(tmp_path / "set"), "pride")
    assert difference(grown.images, larger.images) <= 1
    grown.save(tmp_path / "set")
    names = [p.name for p in sorted((tmp_path / "set").glob("0*.png"))]
    assert names == ["01_joy.png", "02_anger.png", "03_fear.png", "04_pride.png"]
    saved = json.loads((tmp_path / "set" / "set.json").read_text())
    assert [a["expression"] for a in saved["anchor_expressions"]] == ["joy", "anger"]
    other = dataclasses.replace(grown, settings={**grown.settings, "model": "another"})
    with pytest.raises(ConfigError, match="the set was sampled by another model, another"):
        pipeline.add(other, "pride")
    (tmp_path / "set" / "02_anger.png").unlink()
    with pytest.raises(DataError, match="no avatar set, or a damaged one"):
        AvatarSet.load(tmp_path / "set")


def test_a_morph_goes_evenly_from_one_expression_to_the_other():
    joy, sadness = parse_expressions("joy"), parse_expressions("sadness")
    frames = morph_expressions(joy, sadness, 5)
    assert (frames[0], frames[-1]) == (joy[0], sadness[0])
    np.testing.assert_allclose(frames[1].vector, 0.75 * joy[0].vector + 0.25 * sadness[0].vector, atol=1e-6)
    with pytest.raises(ConfigError, match="morph: 2 expressions where one is needed: joy, fear"):
        morph_expressions(parse_expressions("joy, fear"), sadness, 5)


@pytest.mark.usefixtures("one_device")
def test_the_command_samples_adds_and_morphs(trained_workdir, tmp_path, capsys):
    common = ["--model", str(trained_workdir)]
    one = [*common, "--identity", "seed:2", "--steps", "1", "--consistency", "0.5"]
    assert sample.main([*one, "--expressions", "joy, anger", "--guidance", "3", "--out", str(tmp_path / "set")]) == 0
    assert sample.main([*common, "--add_to", str(tmp_path / "set"), "--expressions", "fear"]) == 0
    assert len(list((tmp_path / "set").glob("0*.png"))) == 3
    morph = ["--morph", "joy", "sadness", "--frames", "4", "--out", str(tmp_path / "morph"), "--animation", "webp"]
    assert sample.main([*one, *morph]) == 0
    with Image.open(tmp_path / "morph" / "morph.webp") as animation:
        assert animation.n_frames == 6  # there and back
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--add_to", "set", "--expressions", "joy", "--seed", "3"], "error: --seed: the set of add_to decides this"),
        (["--add_to", "set"], "--expressions: missing"),
        (
            ["--identity", "seed:1", "--out", "x", "--consistency", "0.5", "--anchors", "9", "--expressions", "joy"],
            "--anchors 9: the set has",
        ),
        (["--identity", "seed:1", "--out", "x", "--anchors", "2"], "--anchors: has no effect without shared tokens"),
        (["--identity", "seed:1", "--out", "x", "--anchor_expressions", "joy"], "set consistency above 0"),
        (["--out", "x"], "--identity: missing"),
        (["--identity", "seed:1", "--out", "x", "--frames", "1"], "--frames 1: must be at least 2"),
        (["--identity", "seed:1", "--out", "x", "--morph", "joy", "joyy"], "did you mean 'joy'"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(options, words, trained_workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--model", str(trained_workdir), *options]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_interrupting_ends_with_status_130_and_writes_nothing(trained_workdir, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "__call__", interrupted)
    words = ["--model", str(trained_workdir), "--identity", "seed:1", "--expressions", "joy", "--out"]
    assert sample.main([*words, str(tmp_path / "set")]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
