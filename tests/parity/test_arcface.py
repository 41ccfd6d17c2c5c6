"""ArcFace weights from torch itself: a randomly initialised IResNet, exported to ONNX and saved in safetensors."""

import jax
import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file
from support.arcface_models import random_state

from genaffect_jax.config.encoders import WHOLE
from genaffect_jax.interop.arcface.weights import read_arcface
from genaffect_jax.models.face_encoders.encoder import build_encoder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
DEPTHS, WIDTHS, SIDE = (2, 1, 2, 1), (16, 16, 32, 32), 112


class Block(torch.nn.Module):
    """insightface's IBasicBlock."""

    def __init__(self, inputs, outputs, first):
        super().__init__()
        nn = torch.nn
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 2 if first else 1, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)
        shortcut = (nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs, eps=1e-5))
        self.downsample = nn.Sequential(*shortcut) if first else None

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(torch.nn.Module):
    """insightface's IResNet, with its names."""

    def __init__(self):
        super().__init__()
        nn, inputs = torch.nn, WIDTHS[0]
        self.conv1 = nn.Conv2d(3, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.prelu = nn.PReLU(inputs)
        for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), 1):
            blocks = [Block(width if i else inputs, width, i == 0) for i in range(depth)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = width
        self.bn2 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(inputs * 49, 24)
        self.features = nn.BatchNorm1d(24, eps=1e-5)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(x), 1))))


@pytest.fixture(scope="module")
def network():
    state = random_state(DEPTHS, WIDTHS, SIDE, 24)
    network = IResNet()
    network.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in state.items()})
    return network.eval()


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(1).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)


def ours(path, batch):
    config, parameters = read_arcface(path, WHOLE)
    assert (config.depths, config.widths, config.image_size, config.width) == (DEPTHS, WIDTHS, SIDE, 24)
    encoder = build_encoder(config)
    return np.asarray(jax.jit(lambda p, x: encoder.merge(p)(x))(parameters, batch))


@pytest.mark.parametrize("fold", [True, False])
def test_torchs_own_export_equals_onnxruntime(network, batch, tmp_path, fold):
    path = tmp_path / "exported.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, SIDE, SIDE),),
        str(path),
        input_names=["data"],
        output_names=["out"],
        dynamo=False,
        dynamic_axes={"data": {0: "batch"}, "out": {0: "batch"}},
        do_constant_folding=fold,
        training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"data": np.ascontiguousarray(batch.transpose(0, 3, 1, 2))})[0]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours(path, batch), expected, atol=1e-4)


def test_a_state_dict_of_a_parallel_training_equals_torch(network, batch, tmp_path):
    state = {f"module.{key}": value.numpy() for key, value in network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network(torch.from_numpy(batch).permute(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours(tmp_path / "w.safetensors", batch), expected, atol=1e-4)
