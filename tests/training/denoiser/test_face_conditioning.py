"""A denoiser conditioned on face encoders, from training to a set: embeddings, measured expressions, refusals."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.devices import first_device

from genaffect_jax import sample
from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import ConditioningConfig, DataConfig, DenoiserRun, FlowConfig, MeshConfig, TrainConfig
from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.sources.open import open_source
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.expressions.grammar import ExpressionError
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.face_encoders.encoder import build_encoder, load_expression_encoder, load_identity_encoder
from genaffect_jax.models.mmdit.model import MMDiTOutput
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.conditioning_probe import ConditioningProbe
from genaffect_jax.training.denoiser.features import cache_features
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.denoiser.task import train_denoiser

QUIET = Console(quiet=True)
SMALL = {"image_size": 16, "widths": (8, 8), "depths": (1, 1), "norm_num_groups": 4, "hidden": 8, "neck": 4}
ENCODERS = {"identity": {"width": 12}, "expression": {"width": 40}}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Weight files of small random encoders: a conditioning and an evaluator of each kind."""
    folder = tmp_path_factory.mktemp("encoders")
    rng = np.random.default_rng(0)
    for target, sizes in ENCODERS.items():
        config = FaceEncoderConfig(target=target, **sizes, **SMALL)
        parameters = {
            name: (3 * rng.standard_normal(s.shape) * np.prod(s.shape[:-1]) ** -0.5).astype(np.float32)
            for name, s in build_encoder(config).shapes.items()
        }
        for role in ("avatar", "evaluator"):
            header = {"name": f"{target}_{role}", "licence": "Apache-2.0"}
            save_weights(parameters, folder / f"{target}_{role}.safetensors", "float32", config, header)
    return folder


@pytest.fixture(scope="module")
def config(tiny_model, encoders) -> DenoiserRun:
    return DenoiserRun(
        data=DataConfig(
            image_size=32,
            identities=6,
            expressions_per_identity=4,
            expressions_per_set=2,
            workers=0,
            cache_latents=True,
        ),
        model=dataclasses.replace(
            tiny_model,
            conditioning=ConditioningConfig(
                expression_space="encoder",
                expression_tokens=2,
                identity_layers=1,
                identity_tokens=3,
                identity_embedding=12,
            ),
            identity_encoder=str(encoders / "identity_avatar.safetensors"),
            expression_encoder=str(encoders / "expression_avatar.safetensors"),
        ),
        # A high rate: the zero-initialised branches must have moved for conditions to show in the images.
        train=TrainConfig(steps=4, batch_size=8, warmup_steps=0, learning_rate=0.03, checkpoint_every=100),
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    with first_device():
        assert train_denoiser(config, path, QUIET)
    return path


@pytest.fixture(scope="module")
def pipeline(workdir):
    return Pipeline.load(workdir, devices=jax.devices()[:1])


def test_what_training_reads_is_what_the_encoders_make_of_the_images(config, workdir, encoders):
    source = open_source(config.data, RunDir(workdir))
    (path,) = workdir.glob("features-*.npy")
    encoded = CachedFeatures(source, path)
    images = np.stack([source.load(i) for i in range(3)])
    identity = load_identity_encoder(str(encoders / "identity_avatar.safetensors"))(images)
    expression = load_expression_encoder(str(encoders / "expression_avatar.safetensors"))(images)
    for i in range(3):
        np.testing.assert_allclose(encoded.columns["embedding"][i], identity[i], atol=2e-3)
        np.testing.assert_allclose(encoded.examples[i].expression, expression[i], atol=2e-3)
        assert encoded.load(i).shape == (8, 8, 4)
    assert np.abs(identity[0] - identity[1]).max() > 1e-3


def test_the_run_folder_keeps_encoders_and_word_prototypes_of_the_people_trained_on(config, workdir, encoders):
    run_dir = RunDir(workdir)
    for target, file in (("identity", run_dir.identity_encoder), ("expression", run_dir.expression_encoder)):
        assert file.read_bytes() == (encoders / f"{target}_avatar.safetensors").read_bytes()
    prototypes = WordPrototypes.read(RunDir(workdir).word_prototypes)
    assert prototypes.encoder == "expression_avatar"
    assert 0 < prototypes.images["neutral"] < 6  # everybody has a neutral image, and somebody is held out
    encoder = load_expression_encoder(str(RunDir(workdir).expression_encoder))
    shown = open_source(config.data, RunDir(workdir))
    neutral = [i for i, p in enumerate(shown.examples) if p.label.startswith("neutral")]
    every = encoder(np.stack([shown.load(i) for i in neutral]))
    assert (prototypes.vectors["neutral"] >= every.min(0) - 2e-3).all()
    assert (prototypes.vectors["neutral"] <= every.max(0) + 2e-3).all()


def test_words_come_from_the_prototypes_and_exemplars_from_the_encoder(pipeline, workdir, tmp_path):
    prototypes = WordPrototypes.read(RunDir(workdir).word_prototypes)
    word = next(w for w in prototypes.vectors if w != "neutral")
    face = pipeline.reference("seed:5")
    Image.fromarray(face).save(tmp_path / "face.png")
    avatars = pipeline("seed:4", f"{word}, {tmp_path}/face.png, {tmp_path}/face.png:1.5, neutral", steps=2)
    vectors = [e.vector for e in avatars.expressions]
    np.testing.assert_allclose(vectors[0], prototypes.vectors[word], atol=1e-6)
    read = load_expression_encoder(str(RunDir(workdir).expression_encoder))(face[None])[0]
    np.testing.assert_allclose(vectors[1], read, atol=1e-5)
    neutral = prototypes.vectors["neutral"]
    np.testing.assert_allclose(vectors[2], neutral + 1.5 * (read - neutral), atol=1e-5)
    assert np.abs(avatars.images[0].astype(int) - avatars.images[1]).max() > 1
    avatars.save(tmp_path / "set")
    saved = json.loads((tmp_path / "set" / "set.json").read_text())
    assert [p["file"] for p in saved["images"]][1:3] == ["02_face.png", "03_face-1p5.png"]
    np.testing.assert_allclose(saved["images"][1]["vector"], read, atol=1e-5)
    assert "identity_avatar" in saved["model"]


def test_a_word_that_no_training_image_shows_and_action_units_are_refused(pipeline, workdir):
    known = WordPrototypes.read(RunDir(workdir).word_prototypes).vectors
    missing = next(w for w in ("pride", "shame", "glee", "envy", "rage") if w not in known)
    with pytest.raises(ExpressionError, match=f"'{missing}': the training images .* it knows .*neutral"):
        pipeline("seed:1", missing, steps=1)
    with pytest.raises(ExpressionError, match="vectors of expression_avatar, which has no action units"):
        pipeline("seed:1", "AU12=0.5", steps=1)


def test_the_embedding_of_each_reference_shows_in_the_images(pipeline):
    base = pipeline("seed:1", "neutral", steps=2).images
    kept = pipeline.sampler.frozen_components["identity_encoder"]
    try:
        turned = {n: p[::-1] if n == "head.down.kernel" else p for n, p in kept.items()}
        pipeline.sampler.frozen_components["identity_encoder"] = turned
        assert (pipeline("seed:1", "neutral", steps=2).images != base).any()
    finally:
        pipeline.sampler.frozen_components["identity_encoder"] = kept
    programs = len(pipeline.sampler.compiled)
    assert (pipeline(["seed:1", "seed:2"], "neutral", steps=2).images != base).any()
    assert len(pipeline.sampler.compiled) == programs


class Recorder:
    """In the place of a denoiser: keeps what it is conditioned on."""

    def encode_conditions(self, *given, embedding, **_):
        self.embedding = embedding
        raise StopIteration


def test_the_loss_conditions_on_the_embeddings_of_the_batch():
    embedding = np.random.default_rng(0).random((2, 1, 12))
    latents = np.zeros((2, 3, 8, 8, 4), np.float16)
    batch = {"reference": latents[:, :1], "target": latents[:, 1:], "expression": np.zeros((2, 2, 40))}
    model, compute = Recorder(), make_denoiser_loss(FlowConfig(), None)
    with pytest.raises(StopIteration):
        compute(model, {}, {**batch, "embedding": embedding}, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(model.embedding, embedding)


def test_images_that_are_not_cached_are_served_with_their_embeddings(config, workdir):
    uncached = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_latents=False))
    _, autoencoder = build_networks(config.model)
    faces = install_encoders(RunDir(workdir), config.model)
    source = open_source(config.data, RunDir(workdir))
    encoded = cache_features(uncached, source, RunDir(workdir), faces, autoencoder, {})
    assert encoded.load(5).dtype == np.uint8
    np.testing.assert_allclose(encoded.columns["embedding"][5], faces.identity(source.load(5)[None])[0], atol=2e-3)


@pytest.mark.parametrize("target", ["identity", "expression"])
def test_an_evaluator_is_never_accepted_for_conditioning(config, encoders, target, tmp_path):
    path = str(encoders / f"{target}_evaluator.safetensors")
    model = dataclasses.replace(config.model, **{f"{target}_encoder": path})
    with pytest.raises(ConfigError, match=f"{target}_evaluator is an evaluator, which only measures"):
        install_encoders(RunDir(tmp_path), model)
    other = {"identity": "expression", "expression": "identity"}[target]
    model = dataclasses.replace(config.model, **{f"{target}_encoder": str(encoders / f"{other}_avatar.safetensors")})
    with pytest.raises(WeightsError, match=f"an encoder of {other}; one of {target} is needed"):
        install_encoders(RunDir(tmp_path), model)


def test_a_width_that_is_not_the_encoders_is_refused(config, tmp_path):
    conditioning = dataclasses.replace(config.model.conditioning, identity_embedding=13)
    with pytest.raises(ConfigError, match=r"identity_embedding=13: must be 12, the width of identity_avatar"):
        install_encoders(RunDir(tmp_path), dataclasses.replace(config.model, conditioning=conditioning))


def test_a_model_of_an_encoders_vectors_takes_no_other_encoder(workdir, encoders):
    with pytest.raises(ConfigError, match="expressions are vectors of its own encoder"):
        Pipeline.load(workdir, "package:expression_avatar")
    with pytest.raises(ConfigError, match="expression_evaluator is an evaluator"):
        Pipeline.load(workdir, str(encoders / "expression_evaluator.safetensors"))


def test_the_command_samples_from_several_references_and_an_exemplar(workdir, tmp_path, capsys):
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(tmp_path / "face.png")
    argv = ["--model", str(workdir), "--identity", "seed:1", "seed:2", "--steps", "1", "--out", str(tmp_path / "set")]
    argv += ["--identity-scale", "0.5", "--expression-interval", "0.2", "0.8"]
    assert sample.main([*argv, "--expressions", f"neutral, {tmp_path}/face.png:0.5"]) == 0
    saved = json.loads((tmp_path / "set" / "set.json").read_text())
    assert saved["identity"] == ["seed:1", "seed:2"]
    assert (saved["identity_scale"], saved["expression_interval"]) == ([0.5], [0.2, 0.8])
    assert saved["images"][1]["provenance"] == "exemplar"
    capsys.readouterr()
    assert sample.main([*argv, "--expressions", f"{tmp_path}/none.png"]) == 2
    assert "none.png': no such image file" in capsys.readouterr().err


class OnlyFaces:
    """A denoiser whose velocity is the mean of its references' embeddings, and nothing else."""

    def merge(self, _):
        return self

    def encode_conditions(self, reference, mask, expression, *, embedding, **_):
        return embedding.mean((1, 2))

    def __call__(self, latents, timestep, conditions):
        return MMDiTOutput(jax.numpy.broadcast_to(conditions[:, None, None, None, None], latents.shape))


def test_another_persons_references_in_the_conditioning_probe_come_with_their_embeddings():
    rng = np.random.default_rng(0)
    batch = {
        "reference": np.zeros((2, 1, 8, 8, 4), np.float32),
        "embedding": rng.standard_normal((2, 1, 12), np.float32),
        "target": rng.standard_normal((2, 2, 8, 8, 4), np.float32),
        "expression": rng.random((2, 2, 40), np.float32),
    }
    probe = ConditioningProbe(FlowConfig(), OnlyFaces(), None, {}, batch, make_mesh(MeshConfig(), jax.devices()[:1]))
    measured = probe.measure({})
    assert abs(measured["probe/identity"]) > 1e-4
    assert measured["probe/expression"] == 0.0
