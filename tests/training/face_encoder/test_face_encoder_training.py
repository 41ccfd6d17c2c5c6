"""Face encoders: objective, changes of the training images, stored avatars, and the training commands."""

import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax import train
from genaffect_jax.avatars import sample_identity
from genaffect_jax.avatars.wardrobe import WORN, redress
from genaffect_jax.config import DataConfig, TrainConfig, to_json
from genaffect_jax.config.encoders import DegradeConfig, EncoderRun, FaceEncoderConfig
from genaffect_jax.data.sources import stored
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.procedural import ProceduralSource
from genaffect_jax.data.sources.stored import AvatarSettings, StoredSource, render_redressed, store_avatars
from genaffect_jax.errors import DataError
from genaffect_jax.models.autoencoder.model import normalise
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.training.face_encoder.degrade import make_degrade, quantise
from genaffect_jax.training.face_encoder.loss import arcface_logits, channel_deviations, expression_loss

STILL = DegradeConfig(
    shift=0.0,
    zoom=0.0,
    gain=0.0,
    tint=0.0,
    blur=0.0,
    noise=0.0,
    quantise=0.0,
    autoencoder=None,
)


# Objective


def at(degrees):
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def test_the_margin_widens_the_angle_to_the_own_centre_only():
    embeddings = jnp.array([at(30), at(30), at(170)])
    centres = 5.0 * jnp.array([at(0), at(90)])
    people = jnp.array([0, 1, 0])
    logits = arcface_logits(embeddings, centres, people, margin=np.radians(20), scale=10.0)
    cos = lambda d: 10 * np.cos(np.radians(d))  # noqa: E731
    # 170 + 20 degrees is beyond 180: the cosine goes on falling in a straight line.
    beyond = cos(170) - 10 * np.radians(20) * np.sin(np.radians(20))
    expected = [[cos(50), cos(60)], [cos(30), cos(80)], [beyond, cos(80)]]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_margin_loss_has_a_gradient_where_image_and_centre_agree():
    def loss(e):
        logits = arcface_logits(e, jnp.eye(2), jnp.array([0]), margin=0.3, scale=32.0)
        return -jax.nn.log_softmax(logits)[0, 0]

    assert np.isfinite(jax.grad(loss)(jnp.array([[1.0, 0.0]]))).all()


def test_expression_loss_is_quadratic_then_linear_in_deviations():
    total, count = expression_loss(jnp.array([[0.05, 0.5]]), jnp.zeros((1, 2)), jnp.array([0.1, 0.2]))
    assert float(total) == pytest.approx(0.5 * 0.5**2 + (2.5 - 0.5), rel=1e-5)
    assert float(count) == 2


def test_a_channel_that_never_occurs_has_a_finite_weight():
    vectors = np.zeros((100, 2), np.float32)
    vectors[:50, 0] = 1.0
    assert channel_deviations(vectors).tolist() == pytest.approx([0.5, 0.03])


# Changes of the training images


def test_nothing_changes_if_every_amount_is_zero():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    same = make_degrade(STILL, None)({}, jnp.asarray(images), jax.random.key(0))
    np.testing.assert_allclose(same, normalise(jnp.asarray(images)), atol=1e-5)


@pytest.fixture(scope="module")
def degraded():
    """64 changed copies of a reddish image that is bright at the left and has a white spot above the middle."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0], image[:, :12] = 120, (200, 120, 80)
    image[8:12, 18:22] = 255
    program = jax.jit(make_degrade(DegradeConfig(autoencoder=None), None))
    return np.asarray(program({}, jnp.broadcast_to(image, (64, 32, 32, 3)), jax.random.key(1)))


def test_changed_images_differ_but_stay_in_range(degraded):
    assert np.abs(degraded).max() <= 1.0
    assert len(np.unique(degraded.reshape(64, -1).round(3), axis=0)) == 64


def test_left_stays_left_and_up_stays_up(degraded):
    """Mirroring would exchange left and right action units."""
    assert np.all(degraded[:, :, :8].mean((1, 2, 3)) > degraded[:, :, -8:].mean((1, 2, 3)))
    spot = degraded[:, :, 14:26, 2].mean(2)
    assert np.all(np.abs(spot.argmax(1) - 9.5) < 32 * (0.06 + 0.1) + 2)


def test_colours_keep_their_order(degraded):
    """Hair and skin colour belong to the person."""
    red, green, blue = degraded[:, :, :8].mean((1, 2)).T
    assert np.all(red > green)
    assert np.all(green > blue)


def test_the_configured_share_passes_through_the_autoencoder():
    class Grey:
        """Stands for an autoencoder: everything becomes grey."""

        def merge(self, parameters):
            return self

        def to_latents(self, x):
            return x

        def from_latents(self, z):
            return jnp.zeros_like(z)

    config = DegradeConfig(**{**STILL.__dict__, "autoencoder": "any", "autoencoder_share": 0.25})
    white = jnp.full((16, 8, 8, 3), 255, jnp.uint8)
    changed = make_degrade(config, Grey())({}, white, jax.random.key(0)).mean((1, 2, 3))
    assert np.flatnonzero(np.asarray(changed) < 0.5).tolist() == [0, 4, 8, 12]


def test_coarse_quantisation_leaves_block_means_and_no_step_leaves_all():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    coarse = quantise(x, jnp.array([0.0, 16.0]))
    np.testing.assert_allclose(coarse[0], x[0], atol=1e-5)
    assert float(coarse[1].std()) == pytest.approx(0.0, abs=1e-5)
    fine = quantise(x, jnp.array([0.05, 0.05]))
    assert 0 < float(jnp.abs(fine - x).max()) < 0.3


# Stored avatars

SETTINGS = AvatarSettings(image_size=16, identities=3, expressions_per_identity=2, pose_scale=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return store_avatars(SETTINGS, tmp_path_factory.mktemp("stored") / "avatars", 0)


def test_stored_avatars_are_the_procedural_people_in_other_clothes(folder):
    source, plain = StoredSource(folder), ProceduralSource(16, 3, 2)
    assert isinstance(source, Source)
    assert [(p.identity, p.label, p.expression_key) for p in source.examples] == [
        (p.identity, p.label, p.expression_key) for p in plain.examples
    ]
    person, other = sample_identity(2), stored._somebody(2, 1)
    assert person.background_colour != other.background_colour or person.outfit_colour != other.outfit_colour
    assert not np.array_equal(source.load(5), plain.load(5))
    undone = render_redressed(2, source.examples[5].expression, 2, 16)
    np.testing.assert_array_equal(undone, plain.load(5))


def test_redressing_changes_clothes_and_background_only():
    person, other = sample_identity(4), sample_identity(9)
    dressed = redress(person, other)
    changed = {name for name in person.__dict__ if getattr(dressed, name) != getattr(person, name)}
    assert changed <= set(WORN)
    assert dressed.outfit_colour == other.outfit_colour


def test_avatars_are_rendered_once_and_other_settings_get_another_folder(folder, monkeypatch):
    monkeypatch.setattr(stored, "_render_people", lambda task: pytest.fail("rendered again"))
    assert store_avatars(SETTINGS, folder.parent / "avatars", 0) == folder
    monkeypatch.undo()
    two = AvatarSettings(image_size=16, identities=2, expressions_per_identity=2, pose_scale=1.0)
    other = store_avatars(two, folder.parent / "avatars", 0)
    assert other != folder
    np.testing.assert_array_equal(StoredSource(other).load(3), StoredSource(folder).load(3))


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(stored, "_render_people", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store_avatars(SETTINGS, tmp_path / "avatars", 0)
    assert list(tmp_path.iterdir()) == []


def test_damaged_stored_avatars_are_named(tmp_path):
    with pytest.raises(DataError, match="not readable as stored avatars"):
        StoredSource(tmp_path)


# Commands


def write_preset(path, target, width, autoencoder=None, name="toy"):
    run = EncoderRun(
        name=name,
        data=DataConfig(
            image_size=16, identities=24, expressions_per_identity=3, expressions_per_set=1, holdout=0.3, workers=0
        ),
        encoder=FaceEncoderConfig(
            target=target, image_size=16, widths=(8, 8), depths=(1, 1), norm_num_groups=4, neck=4, hidden=8, width=width
        ),
        degrade=DegradeConfig(autoencoder=autoencoder),
        train=TrainConfig(steps=2, batch_size=8, warmup_steps=1, log_every=1),
    )
    path.write_text(
        "from genaffect_jax.config import from_json\nfrom genaffect_jax.config.encoders import EncoderRun\n\n\n"
        f"def config():\n    return from_json(EncoderRun, {to_json(run)!r})\n"
    )


@pytest.mark.parametrize(("target", "width"), [("identity", 8), ("expression", 40)])
def test_a_short_training_writes_weights_that_load_and_a_report(target, width, tiny_model, tmp_path, capsys):
    preset, work = tmp_path / "preset.py", tmp_path / "run"
    write_preset(preset, target, width, tiny_model.autoencoder_weights)
    argv = ["--config", str(preset), "--workdir", str(work), "--stored", str(tmp_path / "stored")]
    assert train.main(argv) == 0
    load = load_identity_encoder if target == "identity" else load_expression_encoder
    encoder = load(str(work / "toy.safetensors"))
    assert (encoder.name, encoder.licence, encoder.width) == ("toy", "Apache-2.0", width)
    report = json.loads((work / "report.json").read_text())
    assert report["checksum"] == encoder.checksum
    if target == "identity":
        assert 0 <= report["verification"]["accuracy"] <= 1
        assert set(report["mean_cosine_when_only_this_changes"]) == {"expression", "clothes_and_background", "person"}
    else:
        assert len(report["channels"]) == 40
        assert report["absolute_error"]["baseline"] > 0
        assert report["deviation_of_predictions"]["people"] == report["people"]
    assert "through_autoencoder" in " ".join(report)
    assert "report.json" in capsys.readouterr().err.replace("\n", "")  # long paths are wrapped


STAND_IN = """
    import json, pathlib, signal, sys, time
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    work, steps = pathlib.Path(options["--workdir"]), int(options["--train.steps"])
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    if work.name == "expression_encoder" and options.get("--data.pose_scale") == "0.5":
        sys.exit("no expression today")
    rows = work / "metrics.jsonl"
    done = len(rows.read_text().splitlines()) if rows.exists() else 0
    while done < steps:
        done += 1
        with rows.open("a") as file:
            file.write(json.dumps({"step": done}) + "\\n")
        time.sleep(0.02)
    (work / "report.json").write_text(json.dumps({"steps": done}))
    (work / f"{work.name}.safetensors").write_text("weights")
"""


@pytest.fixture
def train_avatar_encoders(load_benchmark):
    """The script `benchmarks/train_avatar_encoders.py`."""
    return load_benchmark("train_avatar_encoders")


@pytest.fixture
def four(tmp_path, monkeypatch, train_avatar_encoders):
    """Four presets, and a stand-in for the training command that logs 50 steps per second and learns nothing."""
    script = tmp_path / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(train_avatar_encoders, "TRAINING", (str(script),))
    monkeypatch.setattr(train_avatar_encoders, "_RESERVE", 0.0)
    monkeypatch.setattr(train_avatar_encoders, "store_avatars", lambda settings, folder, workers: folder)
    for name in train_avatar_encoders.PRESETS:
        write_preset(tmp_path / f"{name}.py", "identity", 8, name=name)
    return ["--workdir", str(tmp_path / "work"), "--configs", str(tmp_path)]


def test_all_four_are_trained_for_the_time_given_and_gathered(four, train_avatar_encoders, tmp_path):
    assert train_avatar_encoders.main([*four, "--seconds", "2", "--out", str(tmp_path / "out")]) == 0
    found = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(found) == 8
    for name in train_avatar_encoders.PRESETS:
        assert f"{name}.safetensors" in found
        steps = json.loads((tmp_path / "out" / f"{name}.report.json").read_text())["steps"]
        assert 1 <= steps <= 200  # stopped by the clock, not after ten million steps


def test_a_training_that_fails_ends_the_others_and_shows_its_last_words(four, train_avatar_encoders, capsys):
    assert train_avatar_encoders.main([*four, "--seconds", "5", "--data.pose_scale", "0.5"]) == 1
    text = capsys.readouterr().err
    assert "expression_encoder ended with status 1" in text
    assert "no expression today" in text


def test_a_wrong_option_is_refused_before_anything_starts(four, train_avatar_encoders, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_avatar_encoders.main([*four, "--train.lerning_rate", "1"])
    assert not (tmp_path / "work").exists()
