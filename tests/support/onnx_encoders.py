"""ONNX expression encoders for tests: a linear network and the settings beside it."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

SIDE, WIDTH = 16, 6
SETTINGS = {
    "onnx": "net.onnx",
    "name": "tiny",
    "licence": "none given",
    "image_size": SIDE,
    "output": "vector",
    "mean": [120.0, 110.0, 100.0],
    "std": [50.0, 60.0, 70.0],
}


def weights():
    return np.random.default_rng(0).standard_normal((3 * SIDE * SIDE, WIDTH)).astype(np.float32) / 30


def make_network(*, batch="batch", layout="nchw"):
    """A linear network whose second output is the vector."""
    axes = [batch, 3, SIDE, SIDE] if layout == "nchw" else [batch, SIDE, SIDE, 3]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["vector"]),
        helper.make_node("Softmax", ["vector"], ["words"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, WIDTH]) for name in ("words", "vector")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)
    graph = helper.make_graph(nodes, "net", [image], outputs, [numpy_helper.from_array(weights(), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def write(folder, network=None, **changes):
    """An encoder's two files; gives the path of the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(network or make_network(), folder / "net.onnx")
    values = {key: value for key, value in {**SETTINGS, **changes}.items() if value is not None}
    (folder / "encoder.json").write_text(json.dumps(values))
    return folder / "encoder.json"


def images(count, side=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def by_hand(batch, mean=SETTINGS["mean"], std=SETTINGS["std"]):
    return ((batch - np.array(mean)) / std).transpose(0, 3, 1, 2).reshape(len(batch), -1) @ weights()
