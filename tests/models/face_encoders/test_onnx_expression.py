"""ONNX expression encoders: images enter as the settings say, and a denoiser can be built on their vectors."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from onnx import load_model, save_model
from PIL import Image
from rich.console import Console
from support.devices import first_device
from support.face_detectors import photo, write_detector
from support.onnx_encoders import SETTINGS, SIDE, WIDTH, by_hand, images, make_network, weights, write

from genaffect_jax import sample
from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.checkpoints.sources import source_digest
from genaffect_jax.config import AuxiliaryConfig, ConditioningConfig, DataConfig, DenoiserRun, LoraConfig, TrainConfig
from genaffect_jax.data.face_encoders import ExpressionEncoder
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.evaluation.run import load_evaluators
from genaffect_jax.export.merge import merge_lora
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.models.face_encoders.encoder import load_conditioning_encoder, load_exemplar_encoder
from genaffect_jax.models.face_encoders.onnx_expression import OnnxExpressionEncoder
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.auxiliary import load_auxiliary
from genaffect_jax.training.denoiser.task import train_denoiser


def test_images_enter_as_the_settings_say(tmp_path):
    encoder = OnnxExpressionEncoder(write(tmp_path))
    assert isinstance(encoder, ExpressionEncoder)
    assert (encoder.name, encoder.width, encoder.licence) == ("tiny", WIDTH, "none given")
    assert len(encoder.checksum) == 64
    batch = images(40)
    np.testing.assert_allclose(encoder(batch), by_hand(batch), atol=1e-4)
    assert encoder(batch[:0]).shape == (0, WIDTH)


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        ({"channels": "bgr"}, lambda x: by_hand(x[..., ::-1])),
        ({"mean": None, "std": None}, lambda x: by_hand(x, 0.0, 1.0)),
        ({"mean": 127.5, "std": None, "scale": 1 / 127.5}, lambda x: by_hand(x, 127.5, 127.5)),
    ],
)
def test_every_setting_counts_and_changes_the_checksum(tmp_path, changes, change):
    encoder = OnnxExpressionEncoder(write(tmp_path / "a", **changes))
    batch = images(3)
    np.testing.assert_allclose(encoder(batch), change(batch), rtol=1e-4, atol=1e-3)
    assert encoder.checksum != OnnxExpressionEncoder(write(tmp_path / "b")).checksum


def test_networks_of_one_image_and_of_channels_last_are_run(tmp_path):
    batch = images(3)
    single = OnnxExpressionEncoder(write(tmp_path / "a", make_network(batch=1)))
    np.testing.assert_allclose(single(batch), by_hand(batch), atol=1e-4)
    last = OnnxExpressionEncoder(write(tmp_path / "b", make_network(layout="nhwc"), layout="nhwc"))
    expected = ((batch - np.array(SETTINGS["mean"])) / SETTINGS["std"]).reshape(3, -1) @ weights()
    np.testing.assert_allclose(last(batch), expected, atol=1e-4)


def test_the_crop_is_read_and_resized(tmp_path):
    encoder = OnnxExpressionEncoder(write(tmp_path, crop=[0.25, 0.5, 0.5]))
    batch = images(2, 2 * SIDE)
    np.testing.assert_allclose(encoder(batch), by_hand(batch[:, 16:32, 8:24]), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "features"}, r"no output 'features' \(has words, vector\)"),
        ({"image_size": 20}, r"has shape .*16, 16\], settings say \(B, \*\[3, 20, 20\]\)"),
        ({"licence": None, "sise": 3}, "unknown entry 'sise'; missing entry 'licence'"),
        ({"scale": 2.0}, "both 'scale' and 'std'"),
        ({"mean": [1, 2]}, r"mean=\[1, 2\]: must be one number or three numbers"),
        ({"std": 0}, "must not be 0"),
        ({"mean": 10**400}, "must be one number or three numbers"),
        ({"image_size": -16}, "image_size=-16: must be 1 to 2048"),
        ({"image_size": 10**9}, "image_size=1000000000: must be 1 to 2048"),
        ({"image_size": 16.0}, "image_size=16.0: must be a positive number"),
        ({"onnx": "net\0.onnx"}, "cannot be read"),
        ({"channels": "grb"}, "channels='grb': must be rgb or bgr"),
        ({"crop": [0.5, 0.5, 0.6]}, "crop=.*inside the image"),
        ({"onnx": "../net.onnx"}, "must be the name of a file in the same folder"),
        ({"onnx": "other.onnx"}, "no such file beside it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, words):
    with pytest.raises(WeightsError, match=words):
        OnnxExpressionEncoder(write(tmp_path, **changes))


def test_a_network_with_weights_in_another_file_is_refused_everywhere_and_in_its_own_folder_too(
    config, tmp_path, monkeypatch
):
    path = write(tmp_path)
    save_model(make_network(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # where onnxruntime finds them
    words = r"net.onnx: its weights lie in other files \('net.data'\).*onnx.save\(onnx.load\('net.onnx'\), 'one.onnx'\)"
    uses = {
        "as it is": lambda: OnnxExpressionEncoder(path),
        "as exemplar": lambda: load_exemplar_encoder(str(path)),
        "as condition": lambda: install_encoders(
            RunDir(tmp_path / "run"), dataclasses.replace(config.model, expression_encoder=str(path))
        ),
        "as evaluator": lambda: load_evaluators(None, "package:identity_evaluator", str(path), True),
        "as digest": lambda: source_digest("model.expression_encoder", str(path)),
    }
    for use in uses.values():
        with pytest.raises(WeightsError, match=words):
            use()
    assert not (tmp_path / "run").exists()
    save_model(load_model("net.onnx"), "one.onnx")  # as the message says
    write(tmp_path / "whole", load_model("one.onnx"))
    batch = images(2)
    np.testing.assert_allclose(
        OnnxExpressionEncoder(tmp_path / "whole" / "encoder.json")(batch), by_hand(batch), atol=1e-4
    )


def test_files_that_cannot_be_copied_or_read_are_refused(tmp_path):
    path = write(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="damaged, or no ONNX file"):
        OnnxExpressionEncoder(path)
    (tmp_path / "net.onnx").unlink()
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(WeightsError, match=r"net.onnx: cannot be read: Is a directory"):
        OnnxExpressionEncoder(path)
    path.write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="not JSON"):
        OnnxExpressionEncoder(path)
    path.write_text("[]")
    with pytest.raises(WeightsError, match="holds a list, must be an object"):
        OnnxExpressionEncoder(path)
    with pytest.raises(WeightsError, match="no such file"):
        OnnxExpressionEncoder(tmp_path / "no.json")


def test_what_needs_gradients_or_a_compiled_network_refuses_an_onnx_file(tmp_path):
    path = str(write(tmp_path))
    with pytest.raises(WeightsError, match="an ONNX encoder, which has no gradients"):
        load_auxiliary(AuxiliaryConfig(expression_weight=1.0, expression_encoder=path), WIDTH)
    with pytest.raises(WeightsError, match=r"an ONNX encoder, which has no gradients .*prepare arcface"):
        load_conditioning_encoder(path, "identity")
    with pytest.raises(ConfigError, match="judge_evaluator is an evaluator"):
        load_exemplar_encoder(str(write(tmp_path, name="judge_evaluator")))


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("onnx"))
    conditioning = ConditioningConfig(
        expression_space="encoder", expression_width=WIDTH, expression_tokens=2, identity_layers=1
    )
    return DenoiserRun(
        data=DataConfig(image_size=32, identities=6, expressions_per_identity=4, expressions_per_set=2, workers=0),
        model=dataclasses.replace(
            tiny_model, conditioning=conditioning, expression_encoder=str(path), lora=LoraConfig(rank=1)
        ),
        train=TrainConfig(steps=1, batch_size=8),
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """The folder of a run of one step, with low-rank additions."""
    path = tmp_path_factory.mktemp("run")
    with first_device():
        assert train_denoiser(config, path, Console(quiet=True))
    return path


def test_a_denoiser_of_an_onnx_encoders_vectors_trains_and_samples_from_its_own_copy(config, workdir, tmp_path):
    copied = OnnxExpressionEncoder(RunDir(workdir).onnx_expression_encoder)
    assert copied.checksum == OnnxExpressionEncoder(type(workdir)(config.model.expression_encoder)).checksum
    prototypes = WordPrototypes.read(RunDir(workdir).word_prototypes)
    assert prototypes.encoder == "tiny"
    assert prototypes.vectors["neutral"].shape == (WIDTH,)
    pipeline = Pipeline.load(workdir, devices=jax.devices()[:1])
    face = pipeline.reference("seed:3")
    Image.fromarray(face).save(tmp_path / "face.png")
    read = pipeline.parse(f"{tmp_path}/face.png")[0]
    np.testing.assert_allclose(read.vector, copied(face[None])[0], atol=1e-5)
    avatars = pipeline("seed:1", f"neutral, {tmp_path}/face.png", steps=1)
    np.testing.assert_allclose(avatars.expressions[0].vector, prototypes.vectors["neutral"], atol=1e-6)
    assert avatars.settings["align"] == "none"


def test_a_merged_model_keeps_its_onnx_encoder(workdir, tmp_path):
    merge_lora(workdir, tmp_path / "merged")
    Image.fromarray(images(1, 32)[0]).save(tmp_path / "face.png")
    text = f"{tmp_path}/face.png"
    merged, original = (Pipeline.load(folder).parse(text)[0].vector for folder in (tmp_path / "merged", workdir))
    np.testing.assert_array_equal(merged, original)


def test_the_copy_is_used_again_and_other_widths_are_refused(config, workdir, tmp_path):
    gone = dataclasses.replace(config.model, expression_encoder=str(tmp_path / "gone.json"))
    assert install_encoders(RunDir(workdir), gone).expression.name == "tiny"
    wide = dataclasses.replace(config.model.conditioning, expression_width=7)
    with pytest.raises(ConfigError, match="expression_width=7: must be 6, the width of tiny"):
        install_encoders(RunDir(workdir), dataclasses.replace(config.model, conditioning=wide))


@pytest.mark.usefixtures("one_device")
def test_references_and_exemplars_are_aligned_when_sampling_says_so(workdir, tmp_path, capsys):
    write_detector(tmp_path / "models" / "det.onnx")
    faces = photo(300, 400, ((120.0, 120.0), 100.0), ((300.0, 150.0), 140.0))
    Image.fromarray(faces).save(tmp_path / "photo.png")
    argv = ["--model", str(workdir), "--identity", f"{tmp_path}/photo.png", "--steps", "1", "--out", f"{tmp_path}/set"]
    argv += ["--expressions", f"neutral, {tmp_path}/photo.png"]
    aligned = [*argv, "--align", "face", "--face_models", f"{tmp_path}/models"]
    assert sample.main(aligned) == 0
    settings = json.loads((tmp_path / "set" / "set.json").read_text())
    assert settings["align"] == "face"
    reference = np.asarray(Image.open(tmp_path / "set" / "reference.png")).astype(int)
    assert np.abs(reference[16, 16] - [127, 127, 255]).max() < 8  # the middle of the larger face
    vector = settings["images"][1]["vector"]
    encoder = OnnxExpressionEncoder(RunDir(workdir).onnx_expression_encoder)
    np.testing.assert_allclose(vector, encoder(reference[None].astype(np.uint8))[0], atol=1e-4)
    assert sample.main([*aligned, "--face_index", "1"]) == 0
    settings = json.loads((tmp_path / "set" / "set.json").read_text())
    np.testing.assert_allclose(settings["images"][1]["vector"], vector, atol=1e-6)  # exemplars: the largest
    other = np.asarray(Image.open(tmp_path / "set" / "reference.png")).astype(int)
    assert np.abs(other[:4] - reference[:4]).max() > 20  # the surroundings of the smaller face
    capsys.readouterr()
    Image.fromarray(photo(60, 60)).save(tmp_path / "nobody.png")
    nobody = [*aligned[:3], f"{tmp_path}/nobody.png", *aligned[4:]]
    assert sample.main(nobody) == 1
    assert "nobody.png: no face found in 60 x 60 pixels" in capsys.readouterr().err
    assert sample.main([*argv, "--align", "face"]) == 2
    assert "align 'face' needs the folder of an insightface model pack" in capsys.readouterr().err


def test_a_model_of_aligned_images_asks_for_face_models_unless_told_otherwise(workdir, tmp_path):
    aligned = tmp_path / "run"
    shutil.copytree(workdir, aligned)
    for path in aligned.rglob("*"):
        if path.is_file() and b'"align": "none"' in (content := path.read_bytes()):
            path.write_bytes(content.replace(b'"align": "none"', b'"align": "face"'))
    for record in aligned.glob("checkpoints/*/digests.json"):
        record.unlink()  # of the files as they were
    with pytest.raises(ConfigError, match="align 'face' needs the folder"):
        Pipeline.load(aligned)
    assert Pipeline.load(aligned, align="none").photos.align == "none"
    write_detector(tmp_path / "models" / "det.onnx")
    assert Pipeline.load(aligned, face_models=tmp_path / "models").photos.align == "face"
