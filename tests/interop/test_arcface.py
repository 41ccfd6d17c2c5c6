"""ArcFace weights in this package's network: equal to onnxruntime, whatever form the file has; strict refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file
from support.arcface_models import random_state, write_onnx

from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AuxiliaryConfig, ConditioningConfig, ModelConfig
from genaffect_jax.config.encoders import ARCFACE_CROP, WHOLE, FaceEncoderConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.arcface.weights import convert_arcface, read_arcface
from genaffect_jax.io.weight_file import checksum, read_metadata
from genaffect_jax.models.face_encoders.encoder import build_encoder, load_identity_encoder
from genaffect_jax.models.face_encoders.networks import cropped
from genaffect_jax.prepare import __main__ as prepare
from genaffect_jax.training.denoiser.auxiliary import load_auxiliary

SMALL = {"depths": (1, 2), "widths": (8, 16), "side": 32, "width": 12}


def images(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def run_onnx(path, batch):
    """What ArcFace's own preprocessing and onnxruntime make of RGB images, unit length."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    blob = ((batch.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
    vectors = session.run(None, {"input.1": np.ascontiguousarray(blob)})[0]
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small IResNet as both kinds of ONNX file and as state dicts in safetensors, one of a parallel training."""
    folder = tmp_path_factory.mktemp("arcface")
    state = random_state(**SMALL)
    write_onnx(state, folder / "folded.onnx", folded=True, side=32)
    write_onnx(state, folder / "unfolded.onnx", folded=False, side=32)
    save_file(state, folder / "state.safetensors")
    counters = {"bn1.num_batches_tracked": np.array(5)}
    save_file({f"module.{key}": v for key, v in {**state, **counters}.items()}, folder / "parallel.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "folded"), [(FaceEncoderConfig.arcface_r50(), True), (FaceEncoderConfig.arcface_r100(), False)]
)
def test_the_published_networks_equal_onnxruntime(config, folded, tmp_path):
    write_onnx(random_state(config.depths), tmp_path / "w.onnx", folded=folded)
    read, parameters = read_arcface(tmp_path / "w.onnx")
    assert read == config
    network = build_encoder(dataclasses.replace(read, crop=WHOLE))
    batch = images(2, 112)
    ours = jax.jit(lambda p, x: network.merge(p)(x))(
        {name: jnp.asarray(v) for name, v in parameters.items()}, batch / 127.5 - 1.0
    )
    expected = run_onnx(tmp_path / "w.onnx", batch)
    assert abs(expected[0] @ expected[1]) < 0.99  # else any two images would agree
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["folded.onnx", "unfolded.onnx", "state.safetensors", "parallel.safetensors"])
def test_every_form_of_a_file_gives_the_encoder_that_onnxruntime_runs(name, small, tmp_path):
    convert_arcface(small / name, tmp_path / "who.safetensors", name="who", licence="none given", crop=WHOLE)
    encoder = load_identity_encoder(str(tmp_path / "who.safetensors"))
    assert (encoder.name, encoder.width, encoder.licence) == ("who", 12, "none given")
    batch = images(3, 32)
    np.testing.assert_allclose(encoder(batch), run_onnx(small / "unfolded.onnx", batch), atol=2e-5)
    assert len(read_metadata(tmp_path / "who.safetensors")["source_sha256"]) == 64


def test_the_crop_is_the_part_of_the_image_that_is_read(small, tmp_path):
    convert_arcface(small / "folded.onnx", tmp_path / "who.safetensors", name="who", licence="x")
    encoder = load_identity_encoder(str(tmp_path / "who.safetensors"))
    assert encoder.config.crop == ARCFACE_CROP
    inner = images(2, 48, seed=1)
    outer = np.stack([np.pad(p, ((8, 8), (8, 8), (0, 0)), constant_values=90) for p in inner])
    blurred = np.asarray(cropped(jnp.asarray(outer, jnp.float32), ARCFACE_CROP, 48))
    np.testing.assert_allclose(blurred, inner, atol=1e-2)  # an eighth of 64 px on each side, nothing resampled
    smooth = np.kron(images(1, 4), np.ones((1, 16, 16, 1), np.uint8))
    changed = smooth.copy()
    changed[:, :6] = changed[:, :, :6] = 0
    np.testing.assert_allclose(encoder(changed), encoder(smooth), atol=1e-5)
    changed[:, 20:30] = 0
    assert np.abs(encoder(changed) - encoder(smooth)).max() > 1e-2


def test_gradients_reach_the_image_through_an_iresnet(small):
    config, parameters = read_arcface(small / "folded.onnx")
    network = build_encoder(config)
    gradient = jax.jit(jax.grad(lambda x: network.merge(parameters)(x)[0, 0]))(images(1, 64) / 127.5 - 1.0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, 20:40, 20:40]).max() > 0
    assert np.abs(gradient[:, :4]).max() == 0


def test_a_denoiser_takes_arcface_as_condition_and_as_loss(small, tmp_path):
    convert_arcface(small / "folded.onnx", tmp_path / "who.safetensors", name="who", licence="x")
    path = str(tmp_path / "who.safetensors")
    model = ModelConfig(conditioning=ConditioningConfig(identity_embedding=12), identity_encoder=path)
    (tmp_path / "run").mkdir()
    assert install_encoders(RunDir(tmp_path / "run"), model).identity.config.architecture == "iresnet"
    losses = load_auxiliary(AuxiliaryConfig(identity_weight=1.0, identity_encoder=path), 40)
    assert losses.identity.checksum == checksum(tmp_path / "who.safetensors")


def test_what_does_not_fit_is_named_at_once(small, tmp_path):
    state = random_state(**SMALL)
    wrong = {
        **state,
        "extra.weight": np.zeros(3, np.float32),
        "layer2.1.conv1.weight": np.zeros((16, 8, 3, 3), np.float32),
    }
    del wrong["layer1.0.bn2.bias"]
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError, match=r"missing layer1.0.bn2.bias; unknown extra.weight \(3,\)"):
        read_arcface(tmp_path / "wrong.safetensors")
    wrong = {
        **state,
        "layer2.1.conv1.weight": np.zeros((16, 8, 3, 3), np.float32),
        "layer1.0.prelu.weight": np.zeros(5, np.float32),
    }
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError) as error:
        read_arcface(tmp_path / "wrong.safetensors")
    assert "trunk.blocks.2.conv1.kernel has shape (3, 3, 8, 16), must be (3, 3, 16, 16)" in str(error.value)
    assert "trunk.blocks.0.prelu.slope has shape (5,), must be (8,)" in str(error.value)


def test_graphs_that_are_no_iresnet_are_refused_where_they_differ(small, tmp_path):
    def changed(edit):
        model = onnx.load(small / "folded.onnx")
        edit(model.graph.node)
        (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "other.onnx"

    def relu(nodes):
        node = [n for n in nodes if n.op_type == "PRelu"][1]
        node.op_type = "Relu"
        del node.input[1:]

    def stride(nodes):
        conv = next(n for n in nodes if n.op_type == "Conv")
        next(a for a in conv.attribute if a.name == "strides").ints[:] = [2, 2]

    with pytest.raises(WeightsError, match=r"trunk.blocks.0.prelu: found Relu .*must be PRelu"):
        read_arcface(changed(relu))
    with pytest.raises(WeightsError, match=r"trunk.stem: strides \[2, 2\], must be \[1, 1\]"):
        read_arcface(changed(stride))


def test_other_files_are_refused(small, tmp_path):
    (tmp_path / "torn.onnx").write_bytes((small / "folded.onnx").read_bytes()[:1000])
    (tmp_path / "torn.safetensors").write_bytes(b"1234")
    for name, words in (("torn.onnx", "damaged"), ("torn.safetensors", "damaged"), ("no.onnx", "no such file")):
        with pytest.raises(WeightsError, match=words):
            read_arcface(tmp_path / name)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"suffix '.bin', must be"):
        read_arcface(tmp_path / "weights.bin")
    for name in ("weights.pt", "weights.pth"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(WeightsError, match=rf"{name}: pickle files are not read.* convert it to safetensors"):
            read_arcface(tmp_path / name)
    with pytest.raises(ConfigError, match="must not be empty"):
        convert_arcface(small / "folded.onnx", tmp_path / "x.safetensors", name="x", licence=" ")
    with pytest.raises(ConfigError, match=r"encoder.crop=\(0.5, 0.0, 0.6\)"):
        convert_arcface(small / "folded.onnx", tmp_path / "x.safetensors", name="x", licence="x", crop=(0.5, 0.0, 0.6))
    with pytest.raises(ConfigError, match="an iresnet gives identity vectors"):
        FaceEncoderConfig(target="expression", architecture="iresnet", depths=(1, 1, 1, 1))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_file_whose_weights_lie_in_another_one_is_refused(small, tmp_path):
    model = onnx.load(small / "folded.onnx")
    onnx.save(model, tmp_path / "w.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    with pytest.raises(WeightsError, match=r"w.onnx: its weights lie in other files \('w.data'\)"):
        convert_arcface(tmp_path / "w.onnx", tmp_path / "x.safetensors", name="x", licence="x")
    assert not (tmp_path / "x.safetensors").exists()


def test_types_of_numbers_that_are_not_read_are_named(tmp_path):
    header = {"conv1.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / "float8.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(WeightsError, match=r"conv1.weight is F8_E4M3; tensors of F16, BF16, F32, F64 are read"):
        read_arcface(tmp_path / "float8.safetensors")


def test_the_command_line_writes_the_file_and_names_what_it_found(small, tmp_path, capsys):
    out = tmp_path / "new" / "who.safetensors"
    assert (
        prepare.main(["arcface", "--weights", str(small / "folded.onnx"), "--licence", "research", "--out", str(out)])
        == 0
    )
    assert "folded, IResNet of 3 blocks, 12 numbers" in " ".join(capsys.readouterr().err.split())
    assert load_identity_encoder(str(out)).licence == "research"
    assert prepare.main(["arcface", "--weights", str(tmp_path / "no.onnx"), "--licence", "x", "--out", str(out)]) == 1
    assert "no.onnx: no such file" in capsys.readouterr().err
