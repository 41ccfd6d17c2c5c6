"""IResNets with random weights for tests: as torch state dicts (in numpy) and as ONNX files in two exporters' forms."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-5


def random_state(depths, widths=(64, 128, 256, 512), side=112, width=512, seed=0):
    """A state dict with insightface's names whose batch-norm statistics are far from the trivial ones."""
    rng = np.random.default_rng(seed)
    state = {}

    def conv(name, out, inputs, size):
        # Half of He's variance: two paths add in each block, and sixty of them must not overflow.
        deviation = (1.0 / (inputs * size * size)) ** 0.5
        state[f"{name}.weight"] = deviation * rng.standard_normal((out, inputs, size, size), np.float32)

    def norm(name, channels, gain=1.0):
        state[f"{name}.weight"] = (gain * rng.uniform(0.6, 1.4, channels)).astype(np.float32)
        state[f"{name}.bias"] = (0.3 * rng.standard_normal(channels)).astype(np.float32)
        state[f"{name}.running_mean"] = (0.3 * rng.standard_normal(channels)).astype(np.float32)
        state[f"{name}.running_var"] = rng.uniform(0.5, 2.0, channels).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", widths[0], 3, 3)
    norm("bn1", widths[0])
    state["prelu.weight"] = rng.uniform(0.1, 0.4, widths[0]).astype(np.float32)
    inputs = widths[0]
    for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True), 1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            norm(f"{name}.bn1", inputs)
            conv(f"{name}.conv1", channels, inputs, 3)
            norm(f"{name}.bn2", channels)
            state[f"{name}.prelu.weight"] = rng.uniform(0.1, 0.4, channels).astype(np.float32)
            conv(f"{name}.conv2", channels, channels, 3)
            norm(f"{name}.bn3", channels, 0.3)
            if block == 0:
                conv(f"{name}.downsample.0", channels, inputs, 1)
                norm(f"{name}.downsample.1", channels)
            inputs = channels
    norm("bn2", inputs)
    features = inputs * (side // 2 ** len(widths)) ** 2
    state["fc.weight"] = (features**-0.5 * rng.standard_normal((width, features))).astype(np.float32)
    state["fc.bias"] = (0.1 * rng.standard_normal(width)).astype(np.float32)
    norm("features", width)
    return state


def write_onnx(state, path: Path, *, folded: bool, side: int = 112) -> None:
    """The network of a state dict as ONNX.

    Folded: what torch's exporter makes of a network in evaluation mode: normalisations are folded into the convolutions
    before them, weights are called by numbers, slopes have shape [C, 1, 1]. Not folded: every layer is a node of its
    own, the last linear layer is MatMul and Add, and equal weights are shared through Identity nodes.
    """
    nodes, buffers = [], []

    def constant(value, name=None):
        name = f"{len(buffers) + 400}" if folded or name is None else name
        buffers.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        if folded:
            return name
        nodes.append(helper.make_node("Identity", [name], [f"{name}_same"]))
        return f"{name}_same"

    def node(kind, inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def norm(x, name):
        parts = [
            constant(state[f"{name}.{p}"], f"{name}.{p}") for p in ("weight", "bias", "running_mean", "running_var")
        ]
        return node("BatchNormalization", [x, *parts], epsilon=EPSILON)

    def conv(x, name, normalised, stride=1):
        kernel = state[f"{name}.weight"]
        size = kernel.shape[-1]
        attributes = {"strides": [stride] * 2, "pads": [size // 2] * 4, "dilations": [1, 1], "group": 1}
        if not folded:
            x = node("Conv", [x, constant(kernel, f"{name}.weight")], kernel_shape=[size] * 2, **attributes)
            return norm(x, normalised)
        factor = state[f"{normalised}.weight"] / np.sqrt(state[f"{normalised}.running_var"] + EPSILON)
        shift = state[f"{normalised}.bias"] - factor * state[f"{normalised}.running_mean"]
        return node("Conv", [x, constant(kernel * factor[:, None, None, None]), constant(shift)], **attributes)

    def prelu(x, name):
        return node("PRelu", [x, constant(state[f"{name}.weight"].reshape(-1, 1, 1), f"{name}.weight")])

    x = prelu(conv("input.1", "conv1", "bn1"), "prelu")
    blocks = sorted(
        {tuple(key.split(".")[:2]) for key in state if key.startswith("layer")}, key=lambda b: (b[0], int(b[1]))
    )
    for stage, block in blocks:
        name = f"{stage}.{block}"
        y = conv(norm(x, f"{name}.bn1"), f"{name}.conv1", f"{name}.bn2")
        y = conv(prelu(y, f"{name}.prelu"), f"{name}.conv2", f"{name}.bn3", 2 if block == "0" else 1)
        if block == "0":
            x = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", 2)
        x = node("Add", [y, x])
    x = node("Flatten", [norm(x, "bn2")], axis=1)
    if folded:
        x = node("Gemm", [x, constant(state["fc.weight"]), constant(state["fc.bias"])], transB=1)
    else:
        x = node("MatMul", [node("Dropout", [x]), constant(state["fc.weight"].T, "fc.weight")])
        x = node("Add", [constant(state["fc.bias"], "fc.bias"), x])
    x = norm(x, "features")
    nodes[-1].output[0] = "output"
    graph = helper.make_graph(
        nodes,
        "iresnet",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(state["fc.bias"])])],
        buffers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())
