"""An expression encoder in an ONNX file, run by onnxruntime: any network from an image to a vector.

A small JSON file describes the preprocessing of images. It stands in the place of a weight file wherever images are
read:

    {"onnx": "enet_b0_8_va_mtl.onnx", "name": "hsemotion_b0", "licence": "Apache-2.0", "image_size": 224,
     "output": "output", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}

Needs the extra `photo`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from genaffect_jax.config.encoders import WHOLE, Crop, describe_crop, require_crop
from genaffect_jax.errors import ConfigError, WeightsError, install_command, listed
from genaffect_jax.io.atomic import copy_atomically, write_atomically
from genaffect_jax.io.onnx_file import parse_model

ONNX_SUFFIX = ".json"
FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
_LARGEST = float(np.finfo(np.float32).max)
LARGEST_SIDE = 2048  # of an image, in pixels: three of them are run when an encoder is read
BATCH = 32  # images in one run of a network that takes any number


@dataclass(frozen=True)
class OnnxSettings:
    """Preprocessing of an ONNX network's images: `(pixel - mean) * scale`, with pixels from 0 to 255."""

    onnx: str
    """Name of the .onnx file in the same folder."""
    name: str
    """Name of the encoder."""
    licence: str
    """Licence of the weights."""
    image_size: int
    """Side of the network's images, in pixels."""
    output: str
    """Name of the output that is the vector."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from each channel, in the order of `channels`; in the file one number may stand for all three."""
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factor of each channel after that; the file may hold `std`, a divisor, in its place."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of the axes."""
    crop: Crop = WHOLE
    """Part of the image to read: left edge, top edge and side, as shares of the image's side."""


class OnnxExpressionEncoder:
    """An ONNX network as `data.face_encoders.ExpressionEncoder`.

    It has no gradients and no action units. Words become vectors through word prototypes
    (`conditioning.expression_space="encoder"`).

    Attributes:
        settings: preprocessing of images.
        checksum: SHA-256 over the ONNX file and the settings (without the file's name), which together decide the
            vectors.
        width: length W of a vector.
    """

    def __init__(self, path: Path) -> None:
        """Reads the settings in a JSON file and the network beside it.

        Raises:
            WeightsError: a file is missing or damaged, a setting is unknown, missing or not allowed, the network
                depends on another file, has no such output or not one image as its input, its output is not one finite
                vector for each image by itself, or onnx or onnxruntime is not installed.
        """
        self.settings = read_settings(path)
        self._file = path.with_name(self.settings.onnx)
        content = _read(self._file, f"{path}: onnx={self.settings.onnx!r}: no such file beside it")
        try:  # a network whose weights the checksum would not see is refused
            parse_model(content, self._file.name)
        except WeightsError as e:
            raise WeightsError(f"{self._file}: {e}") from e
        decisive = dataclasses.asdict(dataclasses.replace(self.settings, onnx=""))
        digest = hashlib.sha256(content)
        digest.update(json.dumps(decisive, sort_keys=True).encode())
        self.checksum = digest.hexdigest()
        self._session = _open_session(content, self._file)
        self._input, self._single = self._check_input()
        self.width = self._check_vectors()

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self.settings.name

    @property
    def preprocessing(self) -> str:
        """What is done to an image before the network reads it, for reports."""
        part = describe_crop(self.settings.crop)
        numbers = f"(pixel - {list(self.settings.mean)}) * {list(self.settings.scale)}"
        return f"{part}, resized to {self.settings.image_size} px, {self.settings.channels.upper()} as {numbers}"

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.settings.licence

    def __call__(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B W"]:
        """The network's vectors of square RGB images of any size.

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another shape.
            WeightsError: the network fails on them, or its vectors are not finite.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise TypeError(f"{self.name}: images have dtype {images.dtype}, must be uint8")
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise ValueError(f"{self.name}: images have shape {images.shape}, must be (count, side, side, 3)")
        resized = [self._resize(image) for image in images]
        step = 1 if self._single else BATCH
        parts = [self._run(np.stack(resized[i : i + step])) for i in range(0, len(resized), step)]
        return np.concatenate([np.zeros((0, self.width), np.float32), *parts])

    def write(self, path: Path) -> None:
        """Copies network and settings. The settings are written last and mark a complete copy.

        Args:
            path: the JSON file; the network is written beside it, with the suffix .onnx.
        """
        onnx = path.with_suffix(".onnx")
        copy_atomically(self._file, onnx)
        settings = dataclasses.replace(self.settings, onnx=onnx.name)
        write_atomically(path, json.dumps(dataclasses.asdict(settings), indent=2) + "\n")

    def _resize(self, image: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "s s 3"]:
        size, (left, top, share) = self.settings.image_size, self.settings.crop
        side = len(image)
        if self.settings.crop == WHOLE and side == size:
            return image
        box = (left * side, top * side, (left + share) * side, (top + share) * side)
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box)
        return np.asarray(resized)

    def _run(self, images: UInt8[np.ndarray, "B s s 3"]) -> Float32[np.ndarray, "B W"]:
        x = images[..., ::-1] if self.settings.channels == "bgr" else images
        mean, scale = (np.array(three, np.float32) for three in (self.settings.mean, self.settings.scale))
        x = (x.astype(np.float32) - mean) * scale
        x = x.transpose(0, 3, 1, 2) if self.settings.layout == "nchw" else x
        try:
            (vectors,) = self._session.run([self.settings.output], {self._input: np.ascontiguousarray(x)})
        except Exception as e:  # onnxruntime raises exceptions of its own
            raise WeightsError(f"{self._file}: cannot be run on images {x.shape}: {e}") from e
        name, shape = self.settings.output, np.shape(vectors)
        if len(shape) != 2 or shape[0] != len(images) or not shape[1]:
            raise WeightsError(
                f"{self._file}: output {name!r} has shape {shape} for {len(images)} images, must be ({len(images)}, "
                "width): one vector for each image"
            )
        vectors = np.asarray(vectors, np.float32)
        if not np.isfinite(vectors).all():
            raise WeightsError(f"{self._file}: output {name!r} has numbers that are not finite")
        return vectors

    def _check_vectors(self) -> int:
        """The width of the vectors, from three images run together and alone."""
        side = self.settings.image_size
        noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
        images = np.concatenate([np.zeros((1, side, side, 3), np.uint8), noise])
        alone = np.concatenate([self._run(image[None]) for image in images])
        if not self._single:
            together = self._run(images)
            # Other sums for another number of images differ by far less, also in float16.
            if together.shape != alone.shape or np.abs(together - alone).max() > 0.01 * np.abs(alone).max():
                raise WeightsError(
                    f"{self._file}: output {self.settings.output!r}: the vector of an image is another one among other "
                    "images (axes exchanged, or means over the batch)"
                )
        return alone.shape[1]

    def _check_input(self) -> tuple[str, bool]:
        """Name of the input, and whether it takes one image only."""
        inputs = self._session.get_inputs()
        types = {output.name: output.type for output in self._session.get_outputs()}
        outputs = list(types)
        size = self.settings.image_size
        wanted = [3, size, size] if self.settings.layout == "nchw" else [size, size, 3]
        problems = []
        if self.settings.output not in outputs:
            problems.append(f"no output {self.settings.output!r} (has {', '.join(outputs)})")
        elif types[self.settings.output] not in FLOATS:
            found = types[self.settings.output]
            problems.append(f"output {self.settings.output!r} is {found}, must be {' or '.join(FLOATS)}")
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            problems.append(f"inputs {found}: must be one of float images")
        elif isinstance(inputs[0].shape[0], int) and inputs[0].shape[0] != 1:
            problems.append(
                f"input {inputs[0].name} has shape {inputs[0].shape}: the first axis must be any number of images, or 1"
            )
        elif any(isinstance(n, int) and n != w for n, w in zip(inputs[0].shape[1:], wanted, strict=True)):
            problems.append(f"input {inputs[0].name} has shape {inputs[0].shape}, settings say (B, *{wanted})")
        if problems:
            raise WeightsError(f"{self._file}: {'; '.join(problems)}")
        return inputs[0].name, inputs[0].shape[0] == 1


def read_settings(path: Path) -> OnnxSettings:
    """The settings in a JSON file.

    Raises:
        WeightsError: the file is missing or no JSON object, or its entries are not those of `OnnxSettings`; all
            problems are named.
    """
    text = _read(path, f"{path}: no such file")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: not JSON ({e})") from e
    if not isinstance(values, Mapping):
        raise WeightsError(f"{path}: holds a {type(values).__name__}, must be an object")
    values = dict(values)
    problems = _unknown_or_missing(values)
    for field, kind in (("onnx", str), ("name", str), ("licence", str), ("image_size", int), ("output", str)):
        if field in values and (not isinstance(values[field], kind) or not values[field] or values[field] is True):
            problems.append(f"{field}={values[field]!r}: must be a {'text' if kind is str else 'positive number'}")
        elif kind is int and field in values and not 1 <= values[field] <= LARGEST_SIDE:
            problems.append(f"{field}={values[field]}: must be 1 to {LARGEST_SIDE}")
    if isinstance(values.get("onnx"), str) and Path(values["onnx"]).name != values["onnx"]:
        problems.append(f"onnx={values['onnx']!r}: must be the name of a file in the same folder")
    for field, allowed in (("channels", ("rgb", "bgr")), ("layout", ("nchw", "nhwc"))):
        if field in values and values[field] not in allowed:
            problems.append(f"{field}={values[field]!r}: must be {' or '.join(allowed)}")
    for field in ("mean", "scale", "std", "crop"):
        if field in values:
            values[field] = _three(values[field], field, problems)
    if "std" in values and not problems:
        std = values.pop("std")
        if 0.0 in std:
            problems.append(f"std={std}: must not be 0")
        else:
            values["scale"] = tuple(1.0 / s for s in std)
    if not problems and "crop" in values:
        try:
            require_crop(values["crop"], "crop")
        except ConfigError as e:
            problems.append(str(e))
    if problems:
        raise WeightsError(f"{path}: {listed(problems)}")
    return OnnxSettings(**values)


def _unknown_or_missing(values: Mapping[str, Any]) -> list[str]:
    fields = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(OnnxSettings)}
    problems = [f"unknown entry {key!r}" for key in sorted(values.keys() - fields.keys() - {"std"})]
    problems += [f"missing entry {key!r}" for key, required in fields.items() if required and key not in values]
    if "std" in values and "scale" in values:
        problems.append("both 'scale' and 'std': keep one")
    return problems


def _three(value: object, field: str, problems: list[str]) -> tuple[float, ...]:
    """One or three numbers as three."""
    numbers = [value] * 3 if isinstance(value, (int, float)) and field != "crop" else value
    good = (
        isinstance(numbers, list)
        and len(numbers) == 3
        and all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) <= _LARGEST for n in numbers)
    )
    if not good or not isinstance(numbers, list):
        problems.append(f"{field}={value!r}: must be {'' if field == 'crop' else 'one number or '}three numbers")
        return (0.0, 0.0, 1.0)
    return tuple(float(n) for n in numbers)


def _read(path: Path, absent: str) -> bytes:
    """The content of a file; `absent` is the message if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise WeightsError(absent) from e
    except OSError as e:  # no permission, a folder or a circle of links
        raise WeightsError(f"{path}: cannot be read: {e.strerror or e}") from e
    except ValueError as e:  # a name that no file can have
        raise WeightsError(f"{path}: cannot be read: {e}") from e


def _open_session(content: bytes, file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise WeightsError(f"{file}: an ONNX file needs onnxruntime ({install_command('photo')})") from e
    try:  # from memory: what is run is what the checksum is of
        return onnxruntime.InferenceSession(content, providers=onnxruntime.get_available_providers())
    except Exception as e:  # onnxruntime raises exceptions of its own
        raise WeightsError(f"{file}: damaged, or no ONNX file ({e})") from e
