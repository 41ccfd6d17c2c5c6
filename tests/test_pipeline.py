"""From training to a saved set: files, settings, and images that do not depend on their company."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.expressions.action_units import CHANNELS
from genaffect_jax.expressions.grammar import ExpressionError, parse_expressions
from genaffect_jax.inference.noise_ids import noise_ids_of
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(trained_workdir):
    return Pipeline.load(trained_workdir, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def half_precision(trained_workdir, tmp_path_factory):
    """The same training, as one in bfloat16 would have left it."""
    folder = tmp_path_factory.mktemp("half") / "run"
    shutil.copytree(trained_workdir, folder)
    for file in folder.glob("checkpoints/*/config/metadata"):
        file.write_text(
            file.read_text()
            .replace('"compute_dtype":"float32"', '"compute_dtype":"bfloat16"')
            .replace('"compute_dtype": "float32"', '"compute_dtype": "bfloat16"')
        )
        (file.parents[1] / "digests.json").unlink(missing_ok=True)  # of the file as it was
    return folder


def test_kernels_are_read_as_they_are_multiplied_and_sample_the_same(half_precision):
    pipeline = Pipeline.load(half_precision, devices=jax.devices()[:1])
    assert pipeline.config.train.compute_dtype == "bfloat16"
    network = build_networks(pipeline.config.model, "bfloat16")[0]
    whole = Checkpoints(half_precision).averaged_parameters(network, make_mesh(MeshConfig(), jax.devices()[:1]))
    read, cast_kernels = pipeline.sampler.parameters, network.cast_kernels(whole)
    assert {x.dtype for x in read.values()} == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    for name, expected in cast_kernels.items():
        assert read[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(read[name], expected, err_msg=name)
    unrounded = Pipeline.load(half_precision, devices=jax.devices()[:1])
    unrounded.sampler.parameters = whole
    images, expected = (p("seed:3", "joy, fear", steps=2).images for p in (pipeline, unrounded))
    np.testing.assert_array_equal(images, expected)


def test_a_set_is_saved_as_sheet_images_and_settings(pipeline, tmp_path):
    avatars = pipeline("seed:11", "joy, 0.5*fear + 0.5*joy, AU12L=0.7", steps=2, seed=3)
    avatars.save(tmp_path / "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    saved = json.loads((tmp_path / "set" / "set.json").read_text())
    assert {"seed": 3, "identity": "seed:11", "steps": 2}.items() <= saved.items()
    assert {"jax", "flax", "numpy", "genaffect-jax", "python"} <= saved["versions"].keys()
    assert "step 6" in saved["model"]
    assert len(saved["images"]) == 3
    for entry, expression, image in zip(saved["images"], avatars.expressions, avatars.images, strict=True):
        vector = np.array([entry["vector"][c] for c in CHANNELS], np.float32)
        np.testing.assert_allclose(vector, expression.vector, atol=1e-6)
        with Image.open(tmp_path / "set" / entry["file"]) as read:
            np.testing.assert_array_equal(np.asarray(read), image)
            assert "generated image" in read.text["Comment"]
    with Image.open(tmp_path / "set" / "sheet.png") as sheet:
        assert sheet.width > 32 * 2


def test_a_new_set_replaces_an_old_one_but_nothing_else(pipeline, tmp_path):
    avatars = pipeline("seed:1", "joy,fear", steps=1)
    avatars.save(tmp_path / "set")
    pipeline("seed:1", "anger", steps=1).save(tmp_path / "set")
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "01_anger.png",
        "reference.png",
        "set.json",
        "sheet.png",
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="no avatar set"):
        avatars.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "holiday.jpg").read_bytes() == b"precious"


def test_an_image_sampled_apart_is_the_same_alone_in_a_set_and_in_another_order(pipeline):
    words = ["joy", "anger", "fear", "pride"]
    together = pipeline("seed:2", ",".join(words), steps=2, consistency=0).images
    backwards = pipeline("seed:2", ",".join(words[::-1]), steps=2, consistency=0).images
    alone = pipeline("seed:2", "fear", steps=2, consistency=0).images
    differs = np.abs(together[2].astype(int) - alone[0].astype(int)).max()
    assert differs <= 1  # other batch shapes round differently
    assert np.abs(together[::-1].astype(int) - backwards.astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[1].astype(int)).max() > 1


def test_sets_longer_than_a_chunk_keep_their_order(pipeline):
    words = list(dict.fromkeys(e.name for e in parse_expressions("all")))[:5]
    seen = []
    long = pipeline(
        "seed:2",
        ",".join(words),
        steps=1,
        consistency=0,
        chunk=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(long.images) == len(words)
    assert seen == [(3, 5), (5, 5)]
    last = pipeline("seed:2", words[-1], steps=1, consistency=0).images[0]
    assert np.abs(long.images[-1].astype(int) - last.astype(int)).max() <= 1


def test_the_seed_and_the_identity_change_the_images(pipeline):
    base = pipeline("seed:2", "joy", steps=1).images
    assert (pipeline("seed:2", "joy", steps=1, seed=1).images != base).any()
    assert (pipeline("seed:3", "joy", steps=1).images != base).any()
    np.testing.assert_array_equal(pipeline("seed:2", "joy", steps=1).images, base)


def test_equal_expressions_in_one_set_get_different_noise():
    numbers = noise_ids_of(parse_expressions("joy,joy,sadness"))
    assert len(set(numbers.tolist())) == 3
    assert numbers[0] == noise_ids_of(parse_expressions("joy"))[0]


def test_an_image_file_gives_the_same_set_as_its_pixels(pipeline, tmp_path):
    reference = pipeline.reference("seed:4")
    Image.fromarray(reference).save(tmp_path / "face.png")
    from_file = pipeline(tmp_path / "face.png", "joy", steps=1)
    np.testing.assert_array_equal(from_file.images, pipeline(reference, "joy", steps=1).images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity": "seed:x"}, "seed:N needs a whole number"),
        ({"identity": np.zeros((8, 8, 3), np.uint8)}, r"identity=uint8 \(8, 8, 3\): must be uint8 \(32, 32, 3\)"),
        ({"identity": []}, "identity: 0 images, must be 1 to 4"),
        ({"identity": ["seed:1"] * 5}, "identity: 5 images, must be 1 to 4"),
        ({"identity_scale": -1.0}, r"identity_scale=\(-1.0,\)"),
        ({"expression_interval": (0.5, 2.0)}, "expression_interval="),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"guidance_expression": float("nan")}, "guidance_expression=nan"),
        ({"guidance": -1.0}, "guidance=-1.0: must be at least 0"),
        ({"consistency": 1.5}, r"consistency=1.5: must lie in \[0, 1\]"),
        ({"consistency": 0.5, "anchors": 2}, "anchors=2: the set has 1 expressions"),
        ({"consistency_layers": (0, 9)}, r"consistency_layers=\[9\]: the model has layers 0 to 1"),
        ({"consistency_start": 1}, "consistency_start=1: must be below steps, 1"),
        ({"expressions": ()}, "expressions: none given"),
        ({"expressions": None}, "expressions=None: must be a text such as"),
        ({"expressions": ["joy", 3]}, "expressions=3: must be a text such as"),
        ({"anchor_expressions": 1.5}, "anchor_expressions=1.5: must be a text"),
        ({"identity": None}, "identity=None: must be an image file, seed:N"),
        ({"identity": 7}, "identity=7: must be an image file, seed:N"),
        ({"identity": "seed:" + "9" * 5000}, r"identity=seed:9+... \(5005 characters\): seed:N needs"),
        ({"steps": 4.0}, "steps=4.0: must be of type int"),
        ({"steps": None}, "steps=None: must be of type int"),
        ({"steps": True}, "steps=True: must be of type int"),
        ({"solver": "ddim"}, "solver=ddim: must be one of euler"),
        ({"shared_mask": 3}, "shared_mask=3: "),
        ({"guidance_scale": 2.0}, "guidance_scale: no setting; .* did you mean guidance"),
        ({"settings": {"steps": 2}}, "settings={'steps': 2}: must be a SamplingConfig"),
    ],
)
def test_arguments_that_are_not_allowed_are_named(pipeline, arguments, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(**{"identity": "seed:1", "expressions": "joy", "steps": 1, **arguments})


def test_a_list_of_texts_is_one_request(pipeline):
    expected = pipeline("seed:1", "joy, 0.5*fear + 0.5*joy, anger", steps=1)
    parsed = pipeline.parse("anger")
    for request in (["joy", "0.5*fear + 0.5*joy", "anger"], ("joy, 0.5*fear + 0.5*joy", *parsed)):
        np.testing.assert_array_equal(pipeline("seed:1", request, steps=np.int64(1)).images, expected.images)
    np.testing.assert_array_equal(pipeline("seed:1", parsed[0], steps=1).images, expected.images[2:])
    assert repr(pipeline).startswith("<Pipeline of trained")
    assert len(repr(pipeline)) < 200


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, s: p.parse(None), "expressions=None: must be a text"),
        (lambda p, s: p.parse(["joy"]), r"expressions=\['joy'\]: must be a text"),
        (lambda p, s: p("seed:1", (w for w in ["joy"]), steps=1), "expressions=<generator object"),
        (lambda p, s: p("seed:1", [["joy"]], steps=1), r"expressions=\['joy'\]: must be a text"),
        (lambda p, s: p("seed:1", b"joy", steps=1), "expressions=b'joy': must be a text"),
        (lambda p, s: p("seed:1", np.zeros(40, np.float32), steps=1), r"expressions=float32 array of shape \(40,\)"),
        (lambda p, s: p("seed:1", "joy", steps=1, progress=3), "progress=3: must be True, False or a function"),
        (lambda p, s: p("seed:1", "joy", steps=1, tell="x"), "tell='x': must be a function of one line"),
        (lambda p, s: p.add(s, []), "expressions: none given"),
        (lambda p, s: p.add(s, None), "expressions=None: must be a text"),
        (lambda p, s: p.add("out/set", "joy"), "avatars='out/set': must be an AvatarSet"),
        (lambda p, s: s.save(None), "folder=None: must be the path"),
        (lambda p, s: s.save("a\0b"), "folder='a.x00b': must be the path"),
        (lambda p, s: s.save("set", animation="mp4"), "animation='mp4': must be gif or webp"),
    ],
)
def test_calls_with_something_else_name_the_argument(pipeline, call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    avatars = pipeline("seed:1", "joy", steps=1)
    with pytest.raises(ConfigError, match=message):
        call(pipeline, avatars)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_a_function_of_numbers_or_a_bar_and_compilations_are_told(pipeline, capfd):
    done, lines = [], []
    # A chunk of another size is a program that no test before has compiled in this process.
    pipeline(
        "seed:1",
        "joy, fear, anger",
        steps=1,
        chunk=1,
        progress=lambda *numbers: done.append(numbers),
        tell=lines.append,
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert all(line.startswith(("compiling the sampler", "compiled in")) for line in lines)
    assert capfd.readouterr() == ("", "")  # nothing is printed unasked
    avatars = pipeline("seed:1", "joy, fear, anger", steps=1, chunk=1, progress=True)
    out, error = capfd.readouterr()
    assert out == ""
    assert "sampling: 3 of 3" in error
    pipeline.add(avatars, "sadness", progress=True)
    assert "sampling: 1 of 1" in capfd.readouterr().err


def test_a_set_shows_its_sheet_in_a_notebook_and_prints_short(pipeline):
    avatars = pipeline("seed:1", "joy, fear, anger, sadness, surprise, love, shame, pride", steps=1)
    assert repr(avatars) == "<AvatarSet of seed:1: joy, fear, anger, sadness, surprise, love and 2 more; 32 px>"
    with Image.open(io.BytesIO(avatars._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), avatars.sheet())


def test_scales_intervals_guidance_and_the_number_of_references_share_one_program(pipeline):
    def draw(identity="seed:2", **options):
        guidance = {"guidance_identity": 1.2, "guidance_expression": 1.5}  # of exactly 1, a branch is left out
        return pipeline(identity, "joy, anger", **{"steps": 3, **guidance, **options}).images.astype(int)

    base = draw()
    programs = len(pipeline.sampler.compiled)
    # The noise levels of three steps are 1, 0.5005 and 0.001.
    without = draw(expression_scale=0.0)
    assert np.abs(without - base).max() > 1
    np.testing.assert_array_equal(draw(expression_scale=0.0, expression_interval=(0.6, 0.9)), base)
    np.testing.assert_array_equal(draw(expression_scale=0.0, expression_interval=(0.001, 1.0)), without)
    early = draw(expression_scale=0.0, expression_interval=(0.9, 1.0))
    assert (early != base).any()
    assert (early != without).any()
    layers = pipeline.config.model.mmdit.num_layers
    np.testing.assert_array_equal(draw(expression_scale=[0.0] * layers), without)
    assert (draw(identity_scale=[0.0] + [1.0] * (layers - 1)) != base).any()
    assert (draw(guidance_identity=2.0) != base).any()
    assert (draw(guidance_expression=3.0) != base).any()
    assert (draw(seed=1, shift=3.0) != base).any()
    assert (draw(steps=2) != base).any()

    two = draw(["seed:2", "seed:3"])
    assert (two != base).any()
    assert np.abs(two - draw(["seed:3", "seed:2"])).max() <= 1
    draw(["seed:2", pipeline.reference("seed:3"), "seed:4", "seed:5"])
    assert len(pipeline.sampler.compiled) == programs


def test_each_guidance_scale_at_zero_takes_its_own_condition_away(pipeline):
    def draw(identity, guidance_identity, guidance_expression):
        return pipeline(
            identity,
            "joy, anger",
            steps=3,
            set_seed_noise="shared",
            guidance_identity=guidance_identity,
            guidance_expression=guidance_expression,
        ).images.astype(int)

    person = draw("seed:2", 1.0, 0.0)
    assert np.abs(person[0] - person[1]).max() <= 1
    assert np.abs(person - draw("seed:3", 1.0, 0.0)).max() > 1
    nobody = draw("seed:2", 0.0, 0.0)
    assert np.abs(nobody - draw("seed:3", 0.0, 0.0)).max() <= 1
    both = draw("seed:2", 1.0, 1.0)
    assert np.abs(both[0] - both[1]).max() > 1


def test_several_references_are_saved_and_named(pipeline, tmp_path):
    avatars = pipeline(["seed:2", pipeline.reference("seed:3")], "joy", steps=1, identity_scale=0.5)
    avatars.save(tmp_path / "set")
    assert {"reference_1.png", "reference_2.png"} <= {p.name for p in (tmp_path / "set").iterdir()}
    saved = json.loads((tmp_path / "set" / "set.json").read_text())
    assert saved["identity"] == ["seed:2", "array"]
    assert (saved["identity_scale"], saved["expression_scale"], saved["identity_interval"]) == (
        [0.5],
        [1.0],
        [0.0, 1.0],
    )


def test_an_unknown_expression_samples_nothing(pipeline):
    with pytest.raises(ExpressionError, match="joyy"):
        pipeline("seed:1", "joyy")


def test_a_folder_that_is_no_training_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run folder of a training"):
        Pipeline.load(tmp_path)
