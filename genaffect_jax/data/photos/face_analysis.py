"""insightface's `FaceAnalysis` from a local folder: face detection and identity embeddings.

Needs the extra `photo`. Nothing is downloaded: the models' folder is checked before insightface reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from genaffect_jax.errors import ConfigError, WeightsError, install_command
from genaffect_jax.io.onnx_file import parse_model

THRESHOLD = 0.5  # insightface's own default of the detection score


@dataclass(frozen=True)
class Face:
    """A face in a photo; coordinates in pixels, with 0 at the centre of the first pixel."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom edge."""
    points: Float[np.ndarray, "5 2"]
    """x and y of both eyes, the tip of the nose and both corners of the mouth, left ones (of the image) first."""
    score: float
    """Confidence of the detector, 0 to 1."""

    @property
    def area(self) -> float:
        """Area of the box, in pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    def __str__(self) -> str:
        left, top, right, bottom = (round(edge) for edge in self.box)
        return f"{right - left} x {bottom - top} px at ({left}, {top})"


class FaceFinder:
    """Finds faces with the detector of an insightface model pack."""

    def __init__(self, models: Path) -> None:
        """Loads the detector.

        Args:
            models: folder of a model pack (with .onnx files), or an insightface root that holds one, `models/<pack>/`.

        Raises:
            ConfigError: there is no model pack or no detector in it, a file of it is damaged or depends on another file
                (`io.onnx_file`), or the extra `photo` is not installed.
        """
        self._analysis = _load(models, ["detection"])

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Face]:
        """The faces in an RGB photo, the largest first.

        Raises:
            ConfigError: the detector returns boxes without the five points.
        """
        return _faces(_found(self._analysis, image))


class InsightFaceEncoder:
    """insightface's detection, alignment and embedding; implements `data.face_encoders.IdentityEncoder`.

    It is for evaluation. For conditioning and training losses, convert the weights to this package's network
    (`python -m genaffect_jax.prepare arcface`).

    Attributes:
        name: pack and file of the recognition model.
        licence: licence of the weights, as given.
        checksum: SHA-256 of the recognition model's file.
        width: numbers in one vector, W.
    """

    def __init__(self, models: Path, licence: str) -> None:
        """Loads detector and recognition model.

        Args:
            models: as for `FaceFinder`.
            licence: licence of the weights (insightface's published packs: non-commercial research only).

        Raises:
            ConfigError: as `FaceFinder`, there is no recognition model, or the licence is empty.
        """
        if not licence.strip():
            raise ConfigError("must not be empty", field="licence", found=repr(licence))
        self._analysis = _load(models, ["detection", "recognition"])
        if "recognition" not in self._analysis.models:
            raise ConfigError(f"face models {models}: no recognition model (has {_tasks(self._analysis)})")
        recognition = self._analysis.models["recognition"]
        file = Path(recognition.model_file)
        self.name, self.licence = f"insightface {file.parent.name}/{file.stem}", licence
        self.checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        width, height = recognition.input_size
        self.width = int(recognition.get_feat(np.zeros((height, width, 3), np.uint8)).size)

    def __call__(self, images: UInt8[np.ndarray, "B S S 3"]) -> Float32[np.ndarray, "B W"]:
        """The vectors of the largest face of each image, each of length 1.

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another shape, or one shows no face.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise TypeError(f"{self.name}: images have dtype {images.dtype}, must be uint8")
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise ValueError(f"{self.name}: images have shape {images.shape}, must be (count, side, side, 3)")
        vectors = np.zeros((len(images), self.width), np.float32)
        for i, image in enumerate(images):
            found = _found(self._analysis, image)
            if not found:
                raise ValueError(f"{self.name}: no face found in image {i} of {len(images)}")
            vectors[i] = found[0].embedding
        return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def model_pack(models: Path) -> Path:
    """The folder of .onnx files for `models`, a pack or an insightface root with one pack.

    Raises:
        ConfigError: there is none, or more than one.
    """
    if not models.is_dir():
        raise ConfigError(f"face models {models}: {'not a folder' if models.exists() else 'no such folder'}")
    if any(models.glob("*.onnx")):
        return models
    packs = sorted({file.parent for file in models.glob("models/*/*.onnx")})
    if len(packs) != 1:
        found = f"several packs, name one of them: {', '.join(map(str, packs))}" if packs else "no .onnx files"
        raise ConfigError(f"face models {models}: {found} (looked for *.onnx and models/<pack>/*.onnx)")
    return packs[0]


def _load(models: Path, modules: Sequence[str]) -> Any:
    pack = model_pack(models)
    try:
        from insightface.app import FaceAnalysis
    except ImportError as e:
        hint = "; in place of opencv-python, opencv-python-headless needs no libGL" if "libGL" in str(e) else ""
        raise ConfigError(f"faces in photos need insightface: {e} ({install_command('photo')}{hint})") from e
    try:
        analysis = FaceAnalysis(str(pack), allowed_modules=list(modules))
        analysis.prepare(ctx_id=0, det_thresh=THRESHOLD)
    except AssertionError as e:  # insightface asserts that there is a detector
        names = ", ".join(sorted(file.name for file in pack.glob("*.onnx")))
        raise ConfigError(f"face models {pack}: no face detector among {names}") from e
    except Exception as e:  # onnx and onnxruntime have error classes of their own for damaged files
        raise ConfigError(f"face models {pack}: cannot be loaded: {type(e).__name__}: {e}") from e
    for model in analysis.models.values():
        file = Path(model.model_file)
        try:
            parse_model(file.read_bytes(), file.name)
        except (WeightsError, OSError) as e:
            raise ConfigError(f"face models {pack}: {file.name}: {e}") from e
    return analysis


def _found(analysis: Any, image: UInt8[np.ndarray, "H W 3"]) -> list[Any]:
    """insightface's faces, the largest first."""
    found = analysis.get(np.ascontiguousarray(image[..., ::-1]))  # insightface reads BGR, as OpenCV does
    return sorted(found, key=lambda f: -float((f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1])))


def _faces(found: Sequence[Any]) -> list[Face]:
    faces = []
    for face in found:
        if face.kps is None:
            raise ConfigError("face models: this detector gives no points of the face (eyes, nose, mouth)")
        left, top, right, bottom = (float(edge) for edge in face.bbox)
        faces.append(Face((left, top, right, bottom), np.asarray(face.kps, np.float64), float(face.det_score)))
    return faces


def _tasks(analysis: Any) -> str:
    return ", ".join(sorted(analysis.models))
