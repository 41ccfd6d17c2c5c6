"""The layers of an ArcFace IResNet in an ONNX file, found by the structure of its graph.

Exporters replace the names of weights by numbers and fold some or all batch normalisations, so names cannot be used.
The graph is traversed from the input: convolution and PReLU; blocks, recognised by two paths that meet in a sum;
normalisation, flattening and a linear layer.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.arcface.layers import Affine, FoldedLayers
from genaffect_jax.io.onnx_file import parse_model

_PASSING = ("Identity", "Dropout", "Cast")  # do nothing in inference
_RESHAPING = ("Unsqueeze", "Transpose")  # of weights: a PReLU's slopes (in any shape), a matrix
_NORM_EPSILON = 1e-5  # default of ONNX's BatchNormalization
_CONV = {"group": 1, "auto_pad": b"NOTSET"}


class Graph:
    """Nodes by their input tensors, and the constants of the file."""

    def __init__(self, model: Any) -> None:
        from onnx import helper, numpy_helper

        self._attribute = helper.get_attribute_value
        self.buffers = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._same: dict[str, str] = {}
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in model.graph.node:  # in ONNX, nodes are in topological order
            if node.op_type == "Constant":
                self.buffers[node.output[0]] = numpy_helper.to_array(self.attributes(node)["value"])
            elif node.op_type in _PASSING:
                source = self.resolve(node.input[0])
                self._same[node.output[0]] = source
                if source in self.buffers:
                    self.buffers[node.output[0]] = self.buffers[source]
            elif node.op_type in _RESHAPING and self.resolve(node.input[0]) in self.buffers:
                value = self.buffers[self.resolve(node.input[0])]
                turned = value.transpose(self.attributes(node)["perm"]) if node.op_type == "Transpose" else value
                self.buffers[node.output[0]] = turned
            else:
                for name in dict.fromkeys(self.resolve(name) for name in node.input):
                    self._readers[name].append(node)
        inputs = [value.name for value in model.graph.input if value.name not in self.buffers]
        if len(inputs) != 1:
            raise WeightsError(f"{len(inputs)} inputs {inputs}, an IResNet has one")
        self.input = inputs[0]

    def resolve(self, name: str) -> str:
        """The tensor of a name, without nodes that do nothing."""
        return self._same.get(name, name)

    def attributes(self, node: Any) -> dict[str, Any]:
        """Attributes of a node."""
        return {a.name: self._attribute(a) for a in node.attribute}

    def readers(self, tensor: str) -> list[Any]:
        """Nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def next(self, tensor: str, kinds: tuple[str, ...], what: str) -> Any:
        """The only node that reads a tensor, which must be of one of these kinds."""
        nodes = self.readers(tensor)
        if len(nodes) != 1 or nodes[0].op_type not in kinds:
            raise WeightsError(f"{what}: found {_kinds(nodes)}, must be {' or '.join(kinds)}")
        return nodes[0]

    def follows(self, tensor: str, kind: str) -> Any | None:
        """The only node that reads a tensor, if it is of this kind."""
        nodes = self.readers(tensor)
        return nodes[0] if len(nodes) == 1 and nodes[0].op_type == kind else None

    def numbers(self, node: Any, position: int, what: str) -> np.ndarray:
        """The constant at an input of a node."""
        name = self.resolve(node.input[position]) if position < len(node.input) else ""
        if name not in self.buffers:
            raise WeightsError(f"{what}: input {position} of {node.op_type} {node.name!r} is no constant of the file")
        return self.buffers[name]


def read_layers(path: Path) -> FoldedLayers:
    """The layers of an ONNX file.

    Raises:
        WeightsError: as `io.onnx_file.parse_model`, or the graph is not an IResNet.
        OSError: the file cannot be read.
    """
    return _walk(Graph(parse_model(path.read_bytes(), path.name)))


def _walk(graph: Graph) -> FoldedLayers:
    layers = FoldedLayers()
    x = _conv(graph, layers, graph.next(graph.input, ("Conv",), "stem"), "trunk.stem", 3, 1)
    x = _prelu(graph, layers, x, "trunk.prelu")
    block = 0
    while len(graph.readers(x)) == 2:
        x = _block(graph, layers, x, f"trunk.blocks.{block}")
        block += 1
    norm = graph.next(x, ("BatchNormalization",), f"after block {block - 1}")
    layers.add_affine("trunk.norm", _affine(graph, norm, "trunk.norm"))
    flat = graph.next(norm.output[0], ("Flatten", "Reshape"), "after trunk.norm")
    if flat.op_type == "Flatten" and graph.attributes(flat).get("axis", 1) != 1:
        raise WeightsError(f"Flatten: axis {graph.attributes(flat)['axis']}, must be 1")
    _head(graph, layers, flat.output[0])
    return layers


def _block(graph: Graph, layers: FoldedLayers, x: str, name: str) -> str:
    """Reads one block and returns its output tensor."""
    nodes = graph.readers(x)
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    others = [node for node in nodes if node.op_type != "BatchNormalization"]
    if len(norms) != 1 or others[0].op_type not in ("Conv", "Add"):
        raise WeightsError(f"{name}: begins with {_kinds(nodes)}, must be BatchNormalization beside Conv or Add")
    side = others[0]
    stride = 2 if side.op_type == "Conv" else 1
    layers.add_affine(f"{name}.norm", _affine(graph, norms[0], f"{name}.norm"))
    y = _conv(graph, layers, graph.next(norms[0].output[0], ("Conv",), f"{name}.conv1"), f"{name}.conv1", 3, 1)
    y = _prelu(graph, layers, y, f"{name}.prelu")
    y = _conv(graph, layers, graph.next(y, ("Conv",), f"{name}.conv2"), f"{name}.conv2", 3, stride)
    total = graph.next(y, ("Add",), f"{name}: after conv2")
    shortcut = x if stride == 1 else _conv(graph, layers, side, f"{name}.shortcut", 1, 2)
    if {graph.resolve(tensor) for tensor in total.input} != {y, shortcut}:
        raise WeightsError(f"{name}: its two paths do not meet in one Add")
    return total.output[0]


def _conv(graph: Graph, layers: FoldedLayers, node: Any, name: str, size: int, stride: int) -> str:
    """Reads a convolution and the normalisation after it, if there is one, and returns the output tensor."""
    found = graph.attributes(node)
    wanted = {**_CONV, "strides": [stride] * 2, "pads": [size // 2] * 4, "dilations": [1, 1]}
    defaults = {**_CONV, "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    problems = [
        f"{key} {found.get(key, defaults[key])}, must be {value}"
        for key, value in wanted.items()
        if found.get(key, defaults[key]) != value
    ]
    kernel = graph.numbers(node, 1, name)
    if kernel.ndim != 4 or kernel.shape[2:] != (size, size):
        problems.append(f"kernel {kernel.shape}, must be (out, in, {size}, {size})")
    if problems:
        raise WeightsError(f"{name}: {'; '.join(problems)}")
    bias = graph.numbers(node, 2, name) if len(node.input) > 2 and node.input[2] else None
    norm = graph.follows(node.output[0], "BatchNormalization")
    affine = None if norm is None else _affine(graph, norm, name)
    if affine is not None and affine.scale.size != len(kernel):
        raise WeightsError(f"{name}: {len(kernel)} channels, its normalisation has {affine.scale.size}")
    layers.add_conv(name, kernel, bias, affine)
    return node.output[0] if norm is None else norm.output[0]


def _prelu(graph: Graph, layers: FoldedLayers, x: str, name: str) -> str:
    node = graph.next(x, ("PRelu",), name)
    layers.add_slope(name, graph.numbers(node, 1, name))
    return node.output[0]


def _head(graph: Graph, layers: FoldedLayers, x: str) -> None:
    node = graph.next(x, ("Gemm", "MatMul"), "head")
    kernel, bias = graph.numbers(node, 1, "head"), None
    x = node.output[0]
    if node.op_type == "Gemm":
        found = graph.attributes(node)
        if found.get("transA", 0) or found.get("alpha", 1.0) != 1.0 or found.get("beta", 1.0) != 1.0:
            raise WeightsError(f"head: Gemm with {found}, must be a plain linear layer")
        kernel = kernel if found.get("transB", 0) else kernel.T
        bias = graph.numbers(node, 2, "head") if len(node.input) > 2 and node.input[2] else None
    else:
        kernel = kernel.T
        if (add := graph.follows(x, "Add")) is not None:
            constant = next((i for i, name in enumerate(add.input) if graph.resolve(name) in graph.buffers), 0)
            bias, x = graph.numbers(add, constant, "head"), add.output[0]
    norm = graph.follows(x, "BatchNormalization")
    if norm is not None:
        x = norm.output[0]
    if graph.readers(x):
        raise WeightsError(f"after the linear layer: found {_kinds(graph.readers(x))}, must be the end")
    layers.add_head("head", kernel, bias, None if norm is None else _affine(graph, norm, "head"))


def _affine(graph: Graph, node: Any, what: str) -> Affine:
    weight, bias, mean, variance = (graph.numbers(node, i, what) for i in (1, 2, 3, 4))
    if len(shapes := {v.shape for v in (weight, bias, mean, variance)}) > 1:
        raise WeightsError(f"{what}: statistics of different shapes {sorted(shapes)}")
    return Affine.of(weight, bias, mean, variance, float(graph.attributes(node).get("epsilon", _NORM_EPSILON)))


def _kinds(nodes: list[Any]) -> str:
    return " and ".join(f"{node.op_type} {node.name!r}" for node in nodes) or "nothing"
