"""ONNX networks that are no encoder: everything but one finite vector for each image by itself is refused."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.onnx_encoders import SIDE, by_hand, images, weights, write

from genaffect_jax.errors import WeightsError
from genaffect_jax.models.face_encoders.onnx_expression import OnnxExpressionEncoder

FLAT = (("Flatten", ["image"], ["flat"], {}), ("MatMul", ["flat", "w"], ["linear"], {}))


def other_network(*nodes, kind=TensorProto.FLOAT, axes=("batch", 3, SIDE, SIDE), opset=17, sequence=False):
    """A network of `nodes` (operation, inputs, outputs, attributes); the last gives the vector."""
    made = [helper.make_node(operation, inputs, outputs, **more) for operation, inputs, outputs, more in nodes]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)
    constants = [
        numpy_helper.from_array(weights(), "w"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.array([1], np.int64), "second"),
        numpy_helper.from_array(np.array([0.0], np.float32), "zero"),
        numpy_helper.from_array(np.array([255.0], np.float32), "white"),
        numpy_helper.from_array(np.array([-1, 3 * SIDE * SIDE], np.int64), "shape"),
    ]
    output = helper.make_tensor_value_info("vector", kind, None)
    if sequence:
        output = helper.make_tensor_sequence_value_info("vector", kind, None)
    graph = helper.make_graph(made, "net", [image], [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


SUMS = {"axes": [0], "keepdims": 1}
REFUSED_NETWORKS = {
    "one row for several images": ([*FLAT, ("ReduceMean", ["linear"], ["vector"], SUMS)], {}, "has shape .*one vector"),
    "scalar": ([*FLAT, ("ReduceMean", ["linear"], ["vector"], {"keepdims": 0})], {}, r"has shape \(\)"),
    "one number for each image": (
        [*FLAT, ("ReduceMean", ["linear"], ["vector"], {"axes": [1], "keepdims": 0})],
        {},
        r"has shape \(1,\)",
    ),
    "a map for each image": ([("Relu", ["image"], ["vector"], {})], {}, r"has shape \(1, 3, 16, 16\)"),
    "batch and width exchanged": (
        [*FLAT, ("Transpose", ["linear"], ["vector"], {"perm": [1, 0]})],
        {},
        r"has shape \(6, 1\) for 1 images",
    ),
    "batch and channels exchanged": (
        [
            ("Transpose", ["image"], ["turned"], {"perm": [1, 0, 2, 3]}),
            ("Reshape", ["turned", "shape"], ["flat"], {}),
            ("MatMul", ["flat", "w"], ["vector"], {}),
        ],
        {},
        "is another one among other images",
    ),
    "mean over the batch": (
        [
            *FLAT,
            ("ReduceMean", ["linear"], ["mean"], SUMS),
            ("Sub", ["linear", "mean"], ["difference"], {}),
            ("Add", ["difference", "mean"], ["same"], {}),
            ("Add", ["same", "mean"], ["vector"], {}),
        ],
        {},
        "is another one among other images",
    ),
    "no width": ([*FLAT, ("Slice", ["linear", "first", "first", "second"], ["vector"], {})], {}, r"has shape \(1, 0\)"),
    "not finite": ([*FLAT, ("Div", ["linear", "zero"], ["vector"], {})], {}, "not finite"),
    "whole numbers": (
        [*FLAT, ("Cast", ["linear"], ["vector"], {"to": TensorProto.INT64})],
        {"kind": TensorProto.INT64},
        r"is tensor\(int64\), must be tensor\(float\)",
    ),
    "8 bits": (
        [*FLAT, ("Cast", ["linear"], ["vector"], {"to": TensorProto.UINT8})],
        {"kind": TensorProto.UINT8},
        r"is tensor\(uint8\)",
    ),
    "signed 8 bits": (
        [*FLAT, ("Cast", ["linear"], ["vector"], {"to": TensorProto.INT8})],
        {"kind": TensorProto.INT8},
        r"is tensor\(int8\)",
    ),
    "8-bit floats": (
        [*FLAT, ("Cast", ["linear"], ["vector"], {"to": TensorProto.FLOAT8E4M3FN})],
        {"kind": TensorProto.FLOAT8E4M3FN, "opset": 19},
        r"is tensor\(float8e4m3fn\)",
    ),
    "texts": (
        [*FLAT, ("Cast", ["linear"], ["vector"], {"to": TensorProto.STRING})],
        {"kind": TensorProto.STRING},
        r"is tensor\(string\)",
    ),
    "a list of vectors": (
        [*FLAT, ("SequenceConstruct", ["linear"], ["vector"], {})],
        {"sequence": True},
        r"is seq\(tensor\(float\)\)",
    ),
    "truths": (
        [*FLAT, ("Greater", ["linear", "zero"], ["vector"], {})],
        {"kind": TensorProto.BOOL},
        r"is tensor\(bool\)",
    ),
    "four images at once": ([*FLAT, ("Relu", ["linear"], ["vector"], {})], {"axes": (4, 3, SIDE, SIDE)}, "first axis"),
}


@pytest.mark.parametrize("name", REFUSED_NETWORKS)
def test_a_network_that_is_not_one_vector_for_each_image_is_refused(tmp_path, name):
    nodes, changes, words = REFUSED_NETWORKS[name]
    with pytest.raises(WeightsError, match=words):
        OnnxExpressionEncoder(write(tmp_path, other_network(*nodes, **changes)))


def test_double_outputs_are_read_and_one_that_is_not_finite_later_is_refused(tmp_path):
    double = other_network(*FLAT, ("Cast", ["linear"], ["vector"], {"to": TensorProto.DOUBLE}), kind=TensorProto.DOUBLE)
    batch = images(3)
    read = OnnxExpressionEncoder(write(tmp_path / "a", double))(batch)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, by_hand(batch), atol=1e-4)
    # Infinite for a white image alone, and none of the images of the first check is white.
    least = ("ReduceMin", ["flat"], ["least"], {"axes": [1], "keepdims": 1})
    steep = other_network(
        *FLAT,
        least,
        ("Sub", ["white", "least"], ["below"], {}),
        ("Log", ["below"], ["log"], {}),
        ("Add", ["linear", "log"], ["vector"], {}),
    )
    encoder = OnnxExpressionEncoder(write(tmp_path / "b", steep, mean=0.0, std=1.0, scale=None))
    with pytest.raises(WeightsError, match="not finite"):
        encoder(np.full((1, SIDE, SIDE, 3), 255, np.uint8))
