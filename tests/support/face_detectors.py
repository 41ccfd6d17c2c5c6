"""Face detectors for tests: ONNX files of SCRFD's shape that insightface runs as its own.

A test's face is a square that carries its own coordinates: red grows from 0 to 255 from its left to its right edge,
green from its upper to its lower one, blue is 255. The detector fits a plane to red and green around each point, which
gives place, size and rotation of the square, and reports ArcFace's five points in it. An aligned image of such a face
can therefore be checked point by point.
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from genaffect_jax.data.photos.alignment import ARCFACE_POINTS

POINTS = (ARCFACE_POINTS + 0.5) / 112  # in shares of the square: it is ArcFace's
WINDOW = 13  # pixels of the plane fit


def paint(image, centre, side, degrees=0.0):
    """Draws a face into an RGB image; `centre` in continuous pixels, turned clockwise by `degrees`."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    turn = np.exp(-1j * np.deg2rad(degrees))
    z = ((x - centre[0]) + 1j * (y - centre[1])) * turn / side + 0.5 + 0.5j
    inside = (z.real >= 0) & (z.real < 1) & (z.imag >= 0) & (z.imag < 1)
    face = np.stack([255 * z.real, 255 * z.imag, np.full(z.shape, 255)], -1).round()
    image[inside] = face[inside]
    return image


def photo(height, width, *faces):
    """A grey photo with faces, each (centre, side) or (centre, side, degrees)."""
    image = np.full((height, width, 3), 90, np.uint8)
    for face in faces:
        paint(image, *face)
    return image


def points_of(centre, side, degrees=0.0):
    """The five points of a painted face as a detector gives them (0 is the centre of the first pixel)."""
    z = (POINTS[:, 0] + 1j * POINTS[:, 1] - 0.5 - 0.5j) * side * np.exp(1j * np.deg2rad(degrees))
    return np.stack([z.real + centre[0], z.imag + centre[1]], -1) - 0.5


def write_detector(path: Path, *, whole_image: bool = False) -> None:
    """Writes the detector; with `whole_image` any image is one face, as grey ones cannot carry coordinates."""
    nodes, buffers, outputs = [], [], []

    def const(value, kind=np.float32):
        buffers.append(numpy_helper.from_array(np.asarray(value, kind), f"c{len(buffers)}"))
        return buffers[-1].name

    def op(kind, *inputs, **attributes):
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def channel(x, i):
        return op("Slice", x, const([i], np.int64), const([i + 1], np.int64), const([1], np.int64))

    def combine(*terms):
        """Sum of factor * tensor."""
        parts = [op("Mul", x, const(f)) for f, x in terms]
        return op("Sum", *parts)

    # insightface gives (pixel - 127.5) / 128
    colours = op("Div", op("Add", op("Mul", "input.1", const(128.0)), const(127.5)), const(255.0))
    if whole_image:
        one = op("Add", op("Mul", channel(colours, 0), const(0.0)), const(1.0))
        counts = [op("CumSum", one, const(axis, np.int64)) for axis in (3, 2)]
        ramps = [op("Div", c, op("ReduceMax", c, keepdims=1)) for c in counts]
        colours = op("Concat", *ramps, one, axis=1)
    t = np.arange(WINDOW) - WINDOW // 2
    slope = np.broadcast_to(t, (WINDOW, WINDOW)) / (WINDOW * (t * t).sum())
    mean = np.full((WINDOW, WINDOW), 1 / WINDOW**2)
    kernel = np.zeros((6, 3, WINDOW, WINDOW))
    for i, (source, weights) in enumerate([(0, slope), (0, slope.T), (1, slope), (1, slope.T), (0, mean), (1, mean)]):
        kernel[i, source] = weights
    fit = op("Conv", colours, const(kernel), pads=[WINDOW // 2] * 4)
    ux, uy, vx, vy, u, v = (channel(fit, i) for i in range(6))
    determinant = op("Max", op("Sub", op("Mul", ux, vy), op("Mul", uy, vx)), const(1e-8))
    flag = op("Neg", op("MaxPool", op("Neg", channel(colours, 2)), kernel_shape=[WINDOW] * 2, pads=[WINDOW // 2] * 4))

    def offset(target):
        """x and y of a point of the square, from where we are."""
        du, dv = (op("Sub", const(target[i]), w) for i, w in enumerate((u, v)))
        x = op("Sub", op("Mul", vy, du), op("Mul", uy, dv))
        y = op("Sub", op("Mul", ux, dv), op("Mul", vx, du))
        return op("Div", x, determinant), op("Div", y, determinant)

    side = op("Reciprocal", op("Sqrt", determinant))
    x, y = offset((0.5, 0.5))
    box = op(
        "Concat",
        combine((0.5, side), (-1.0, x)),
        combine((0.5, side), (-1.0, y)),
        combine((0.5, side), (1.0, x)),
        combine((0.5, side), (1.0, y)),
        axis=1,
    )
    points = op("Concat", *[xy for target in POINTS for xy in offset(target)], axis=1)
    away = op("Max", *[op("Abs", op("Sub", w, const(0.5))) for w in (u, v)])
    central = op("And", op("Less", away, const(0.15)), op("Greater", flag, const(0.98)))
    score = op("Mul", op("Cast", central, to=TensorProto.FLOAT), op("Sub", const(0.95), away))

    def output(x, stride, name, width):
        x = op(
            "Slice",
            x,
            const([0, 0], np.int64),
            const([2**30] * 2, np.int64),
            const([2, 3], np.int64),
            const([stride] * 2, np.int64),
        )
        x = op("Transpose", x, perm=[0, 2, 3, 1])
        x = op("Concat", x, x, axis=3)  # two anchors at each place
        nodes.append(helper.make_node("Reshape", [x, const([-1, width], np.int64)], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n{stride}", width]))

    for kind, map_, width in (("score", score, 1), ("bbox", box, 4), ("kps", points, 10)):
        for stride in (8, 16, 32):
            factor = const(0.0 if kind == "score" and stride > 8 else 1.0 if kind == "score" else 1 / stride)
            output(op("Mul", map_, factor), stride, f"{kind}_{stride}", width)
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "h", "w"])],
        outputs,
        buffers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
