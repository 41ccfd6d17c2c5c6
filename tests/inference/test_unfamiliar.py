"""Unfamiliar identities are named and recorded; they are sampled all the same."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from genaffect_jax import sample
from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.checkpoints.components import install_latent_range
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AutoencoderConfig
from genaffect_jax.data.latent_range import LatentRange
from genaffect_jax.data.sources.procedural import ProceduralSource
from genaffect_jax.errors import UnfamiliarIdentityWarning, WeightsError
from genaffect_jax.expressions.action_units import neutral
from genaffect_jax.inference.avatar_set import AvatarSet
from genaffect_jax.inference.unfamiliar import ReferenceCheck
from genaffect_jax.io.image_grid import write_png
from genaffect_jax.io.weight_file import load_weights, resolve_weights
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.latent_range import fit_latent_range

SIZE = 32


@pytest.fixture(scope="module")
def with_range(trained_workdir, tmp_path_factory):
    """The trained tiny model with a range whose limit lies between an avatar and one grey: random weights of its
    autoencoder tell little apart."""
    folder = tmp_path_factory.mktemp("range") / "run"
    shutil.copytree(trained_workdir, folder)
    config = Pipeline.load(trained_workdir, devices=jax.devices()[:1]).config
    source = ProceduralSource(SIZE, 12, 2)
    autoencoder = build_networks(config.model)[1]
    parameters = load_weights(autoencoder, RunDir(folder).autoencoder, config.model.autoencoder)
    people = sorted({example.identity for example in source.examples})
    found = fit_latent_range(config, source, people, autoencoder, parameters)
    assert found is not None
    avatar = render(sample_identity(1), neutral(), SIZE)
    usual, far = ReferenceCheck(found, autoencoder, parameters)(np.stack([avatar, grey()]))
    assert far > 1.1 * usual
    between = dataclasses.replace(found, limit=found.limit * (usual + far) / 2)
    install_latent_range(RunDir(folder), lambda: between)
    return folder


@pytest.fixture(scope="module")
def pipeline(with_range):
    return Pipeline.load(with_range, devices=jax.devices()[:1])


def grey() -> np.ndarray:
    return np.full((SIZE, SIZE, 3), 128, np.uint8)


def test_by_the_bundled_autoencoder_people_never_seen_pass_and_other_images_do_not():
    config, size = AutoencoderConfig.avatar_tiny(), 128
    autoencoder = Functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    parameters = load_weights(autoencoder, resolve_weights("package:autoencoder_tiny"), config)
    encode = jax.jit(lambda image: autoencoder.merge(parameters).to_latents(normalise(image[None]))[0])

    def avatar(number: int) -> np.ndarray:
        return render(sample_identity(number), neutral(), size)

    source = ProceduralSource(size, 100, 2)
    latents = np.stack([encode(source.load(i)) for i in range(200)])
    known = LatentRange.fit(latents, [example.identity for example in source.examples])
    check = ReferenceCheck(known, autoencoder, parameters)
    unseen = np.stack([avatar(1_000_000 + i) for i in range(60)])
    assert max(check(unseen)) <= 1
    one_grey, noise = np.full((size, size, 3), 128), np.random.default_rng(0).integers(0, 256, (size, size, 3))
    others = [one_grey, noise, 255 - unseen[0], np.roll(unseen[1], size // 4, 1)]
    assert min(check(np.stack(others).astype(np.uint8))) > 1


def test_an_unfamiliar_image_is_a_warning_that_names_it_and_the_set_records_it(pipeline, tmp_path):
    write_png(grey(), tmp_path / "strange.png")
    with pytest.warns(UnfamiliarIdentityWarning) as caught:
        avatars = pipeline(["seed:1", tmp_path / "strange.png"], "joy", steps=1)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "unlike the images that the model was trained on" in message
    assert "strange.png" in message
    assert "seed:1" not in message
    assert caught[0].filename == __file__  # the caller's line, not the pipeline's
    known, strange = avatars.settings["reference_distances"]
    assert known <= 1 < strange
    avatars.save(tmp_path / "set")
    assert json.loads((tmp_path / "set" / "set.json").read_text())["reference_distances"] == [known, strange]
    assert AvatarSet.load(tmp_path / "set").settings["reference_distances"] == [known, strange]


def test_images_are_those_of_a_model_that_does_not_measure(pipeline, trained_workdir):
    plain = Pipeline.load(trained_workdir, devices=jax.devices()[:1])
    assert plain.reference_check is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnfamiliarIdentityWarning)
        expected = plain(grey(), "joy", steps=1)  # what is usual is not known, so nothing is said
    assert "reference_distances" not in expected.settings
    with pytest.warns(UnfamiliarIdentityWarning, match=r": array \("):
        found = pipeline(grey(), "joy", steps=1)
    np.testing.assert_array_equal(found.images, expected.images)


def test_the_command_prints_one_line_and_samples(with_range, tmp_path, capsys):
    write_png(grey(), tmp_path / "strange.png")
    for identity, lines in (("seed:1", 0), (str(tmp_path / "strange.png"), 1), (str(tmp_path / "strange.png"), 1)):
        out = str(tmp_path / "set")
        argv = ["--model", str(with_range), "--identity", identity, "--expressions", "joy", "--steps", "1"]
        assert sample.main([*argv, "--out", out]) == 0
        error = capsys.readouterr().err
        assert error.count("warning: identity: unlike the images that the model was trained on: ") == lines
        assert "UserWarning" not in error
        assert ".py:" not in error
        assert len(AvatarSet.load(tmp_path / "set").images) == 1


def test_a_damaged_or_lost_range_is_named(with_range, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(with_range, folder)
    file = RunDir(folder).latent_range
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"latent_range.safetensors: damaged"):
        Pipeline.load(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=r"latent_range.safetensors: No such file"):
        Pipeline.load(folder)
