"""Conversion of ArcFace weights, from ONNX or a state dict in safetensors, to this package's face encoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from genaffect_jax.config.encoders import ARCFACE_CROP, Crop, FaceEncoderConfig
from genaffect_jax.errors import ConfigError, WeightsError, listed
from genaffect_jax.interop.arcface.layers import Affine, Arrays, FoldedLayers
from genaffect_jax.interop.arcface.onnx import read_layers
from genaffect_jax.io.weight_file import WeightDType, checksum, misfits, save_weights
from genaffect_jax.models.face_encoders.encoder import build_encoder

EPSILON = 1e-5  # of every batch normalisation in insightface's iresnet.py; state dicts do not contain it
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\..+")
_READ_TYPES = ("F16", "BF16", "F32", "F64")
_UNUSED = "num_batches_tracked"  # a counter of the training
_NORM = ("weight", "bias", "running_mean", "running_var")


def convert_arcface(
    weights: Path, out: Path, *, name: str, licence: str, crop: Crop = ARCFACE_CROP, dtype: WeightDType = "float32"
) -> FaceEncoderConfig:
    """Writes ArcFace weights as a weight file of this package, atomically.

    Args:
        weights: an `.onnx` or `.safetensors` file of an IResNet.
        out: the file to write.
        name: name of the encoder, written into the file.
        licence: licence of the weights, written into the file.
        crop: part of an image that the network reads; the default is ArcFace's square in an aligned image.
        dtype: stored type.

    Raises:
        WeightsError: the file is missing, damaged, a pickle or not an IResNet (differences are named), or the
            package that reads it is not installed.
        ConfigError: name or licence is empty, or the crop is not inside the image.
    """
    for field, value in (("name", name), ("licence", licence)):
        if not value.strip():
            raise ConfigError("must not be empty", field=field, found=repr(value))
    config, parameters = read_arcface(weights, crop)
    metadata = {"name": name, "licence": licence, "source_sha256": checksum(weights)}
    save_weights({key: jnp.asarray(value) for key, value in parameters.items()}, out, dtype, config, metadata)
    return config


def read_arcface(weights: Path, crop: Crop = ARCFACE_CROP) -> tuple[FaceEncoderConfig, Arrays]:
    """Configuration and float32 parameters; errors as in `convert_arcface`."""
    if not weights.is_file():
        raise WeightsError(f"{weights}: no such file")
    try:
        if weights.suffix == ".onnx":
            layers = read_layers(weights)
        elif weights.suffix == ".safetensors":
            layers = _layers_of_state(_read_state(weights))
        elif weights.suffix in (".pt", ".pth"):
            raise WeightsError("pickle files are not read, as they can run any code: convert it to safetensors")
        else:
            raise WeightsError(f"suffix {weights.suffix!r}, must be .onnx or .safetensors")
        config = _config_of(layers.parameters, crop)
        expected = {key: s.shape for key, s in build_encoder(config).shapes.items()}
        problems = misfits({key: value.shape for key, value in layers.parameters.items()}, expected)
        if problems:
            raise WeightsError(f"does not fit an IResNet of widths {config.widths}: {listed(problems)}")
    except WeightsError as e:
        raise WeightsError(f"{weights}: {e}") from e
    except OSError as e:
        raise WeightsError(f"{weights}: cannot be read: {e.strerror or e}") from e
    return config, {key: value.astype(np.float32) for key, value in layers.parameters.items()}


def _config_of(parameters: Mapping[str, np.ndarray], crop: Crop) -> FaceEncoderConfig:
    """The configuration that follows from the layers; a shortcut convolution begins a resolution."""
    widths: list[int] = []
    depths: list[int] = []
    for i in range(len([key for key in parameters if key.endswith(".conv1.kernel")])):
        if f"trunk.blocks.{i}.shortcut.kernel" in parameters:
            widths.append(parameters[f"trunk.blocks.{i}.conv2.bias"].size)
            depths.append(0)
        if not depths:
            raise WeightsError("the first block has no shortcut convolution, an IResNet's has one")
        depths[-1] += 1
    if not widths:
        raise WeightsError("no residual blocks")
    features, width = parameters["head.kernel"].shape
    side = math.isqrt(features // widths[-1])
    return FaceEncoderConfig(
        target="identity",
        architecture="iresnet",
        image_size=side * 2 ** len(widths),
        widths=tuple(widths),
        depths=tuple(depths),
        width=width,
        crop=crop,
    )


def _read_state(path: Path) -> Arrays:
    """The tensors of a state dict as float32, without counters and without a common prefix of the keys."""
    try:
        with safe_open(path, framework="np") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        unread = [
            f"{key} is {kind}" for key, kind in types.items() if kind not in _READ_TYPES and not key.endswith(_UNUSED)
        ]
        if unread:
            raise WeightsError(f"{listed(unread)}; tensors of {', '.join(_READ_TYPES)} are read")
        state = dict(load_file(path))
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"damaged, or no safetensors file ({e})") from e
    for prefix in ("module.", "backbone."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: np.asarray(v, np.float32) for key, v in state.items() if not key.endswith(_UNUSED)}


def _layers_of_state(state: Arrays) -> FoldedLayers:
    """The layers of a state dict with the names of insightface's `iresnet.py`."""
    depths: dict[int, int] = {}
    for key in state:
        if found := _BLOCK.fullmatch(key):
            depths[int(found[1])] = max(depths.get(int(found[1]), 0), int(found[2]) + 1)
    expected = _expected_keys([depths.get(stage, 0) for stage in range(1, max(depths, default=0) + 1)])
    problems = [f"missing {key}" for key in sorted(expected - state.keys())]
    problems += [f"unknown {key} {state[key].shape}" for key in sorted(state.keys() - expected)]
    for key in sorted(expected & state.keys()):
        ranks = {"fc.weight": 2}.get(key, 4 if "conv" in key or key.endswith("downsample.0.weight") else 1)
        if state[key].ndim != ranks:
            problems.append(f"{key} has shape {state[key].shape}, must have {ranks} axes")
    if not depths or problems:
        raise WeightsError(f"no state dict of an IResNet: {listed(problems)}")
    layers = FoldedLayers()

    def norm(name: str) -> Affine:
        weight, bias, mean, variance = (state[f"{name}.{part}"] for part in _NORM)
        if len(sizes := {v.size for v in (weight, bias, mean, variance)}) > 1:
            raise WeightsError(f"{name}: statistics of different sizes {sorted(sizes)}")
        return Affine.of(weight, bias, mean, variance, EPSILON)

    def conv(ours: str, theirs: str, normalised: str) -> None:
        kernel, affine = state[f"{theirs}.weight"], norm(normalised)
        if len(kernel) != affine.scale.size:
            raise WeightsError(
                f"{theirs}.weight has shape {kernel.shape}, {normalised} has {affine.scale.size} channels"
            )
        layers.add_conv(ours, kernel, None, affine)

    conv("trunk.stem", "conv1", "bn1")
    layers.add_slope("trunk.prelu", state["prelu.weight"])
    blocks = [f"layer{stage}.{number}" for stage in sorted(depths) for number in range(depths[stage])]
    for i, block in enumerate(blocks):
        ours = f"trunk.blocks.{i}"
        layers.add_affine(f"{ours}.norm", norm(f"{block}.bn1"))
        conv(f"{ours}.conv1", f"{block}.conv1", f"{block}.bn2")
        layers.add_slope(f"{ours}.prelu", state[f"{block}.prelu.weight"])
        conv(f"{ours}.conv2", f"{block}.conv2", f"{block}.bn3")
        if block.endswith(".0"):
            conv(f"{ours}.shortcut", f"{block}.downsample.0", f"{block}.downsample.1")
    layers.add_affine("trunk.norm", norm("bn2"))
    layers.add_head("head", state["fc.weight"], state["fc.bias"], norm("features"))
    return layers


def _expected_keys(depths: list[int]) -> set[str]:
    convs, slopes, norms = ["conv1"], ["prelu"], ["bn1", "bn2", "features"]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            where = f"layer{stage}.{block}"
            convs += [f"{where}.conv1", f"{where}.conv2", *([] if block else [f"{where}.downsample.0"])]
            norms += [f"{where}.bn{n}" for n in (1, 2, 3)] + ([] if block else [f"{where}.downsample.1"])
            slopes.append(f"{where}.prelu")
    keys = {f"{name}.weight" for name in (*convs, *slopes)} | {"fc.weight", "fc.bias"}
    return keys | {f"{name}.{part}" for name in norms for part in _NORM}
