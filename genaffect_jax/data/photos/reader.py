"""Photo files as square images: the centre square, or with the face at its fixed place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.data.photos.alignment import alignment_of, warp
from genaffect_jax.data.photos.face_analysis import Face, FaceFinder
from genaffect_jax.errors import DataError, require
from genaffect_jax.io.images import read_image, read_photo

Align = Literal["none", "face"]
# Side of ArcFace's 112-px square in the photo. At a quarter of it a face has some 8 pixels from eye to eye.
MIN_FACE = 28.0
_LISTED = 8  # faces named in an error message


@dataclass(frozen=True)
class AlignedPhoto:
    """An aligned image and its origin."""

    image: UInt8[np.ndarray, "S S 3"]
    """The image, RGB."""
    face: Face
    """The face, in the photo's pixels (after its EXIF orientation)."""
    faces: int
    """Faces found in the photo."""
    face_side: float
    """Side of ArcFace's square in the photo, in pixels."""
    inside: float
    """Share of the image inside the photo; the rest repeats the photo's edge."""


def require_face_choice(face_index: int, min_face: float) -> None:
    """Raises ConfigError unless the numbers of `PhotoAligner` can be met by a photo."""
    require(face_index >= 0, "face_index", face_index, "must be at least 0 (0: the largest face)")
    require(min_face >= 0 and math.isfinite(min_face), "min_face", min_face, "must be at least 0 pixels, and finite")


class PhotoAligner:
    """Reads photo files and aligns one face of each."""

    def __init__(self, models: Path, face_index: int = 0, min_face: float = MIN_FACE) -> None:
        """Loads the detector.

        Args:
            models: folder of the insightface models, as for `FaceFinder`.
            face_index: face to use, counted from the largest, 0.
            min_face: least side of ArcFace's square in the photo, in pixels.

        Raises:
            ConfigError: as `FaceFinder`, or a number is negative.
        """
        require_face_choice(face_index, min_face)
        self.face_index, self.min_face = face_index, min_face
        self._find = FaceFinder(models)

    def __call__(self, path: Path | str, image_size: int, face_index: int | None = None) -> AlignedPhoto:
        """The aligned image of a photo file.

        Args:
            path: the file; EXIF orientation, transparency, grey and 16-bit images are read as by `read_image`.
            image_size: side S of the result, in pixels.
            face_index: replaces the aligner's own `face_index`.

        Raises:
            DataError: the file cannot be read, or has no face, too few faces or too small a face. The message does not
                name the file; callers name it as the user wrote it.
        """
        index = self.face_index if face_index is None else face_index
        photo = read_photo(path)
        faces = self._find(photo)
        height, width = photo.shape[:2]
        if not faces:
            raise DataError(
                f"no face found in {width} x {height} pixels (for drawn characters and other images that a photo "
                "detector does not know, set align to 'none')"
            )
        if index >= len(faces):
            listed = "; ".join(f"{i}: {face}" for i, face in enumerate(faces[:_LISTED]))
            raise DataError(f"face_index {index}: {len(faces)} found, the largest first ({listed})")
        face = faces[index]
        try:
            alignment = alignment_of(face.points)
        except ValueError as e:
            raise DataError(f"the face {face} cannot be aligned: {e}") from e
        if alignment.face_side < self.min_face:
            raise DataError(
                f"the face {face} is too small: its square of eyes, nose and mouth is {alignment.face_side:.0f} px "
                f"wide, must be at least {self.min_face:g}"
            )
        image = warp(photo, alignment, image_size)
        return AlignedPhoto(image, face, len(faces), alignment.face_side, alignment.inside(height, width))


class PhotoReader:
    """Reads the image files given to one model: the chosen face of references, the largest face of exemplars."""

    def __init__(self, align: Align, models: Path | None = None, face_index: int = 0) -> None:
        """Loads the detector if one is needed.

        Args:
            align: `none` takes the centre square, `face` aligns.
            models: folder of the insightface models, as for `FaceFinder`; needed to align.
            face_index: face to use in a reference, counted from the largest, 0.

        Raises:
            ConfigError: the models are missing or not needed, or as `PhotoAligner`.
        """
        if align == "none":
            require(models is None, "face_models", models, "is not used if align is 'none'; leave it out")
            require(face_index == 0, "face_index", face_index, "needs align 'face'")
            self._aligner = None
        else:
            require(
                models is not None,
                "face_models",
                models,
                "align 'face' needs the folder of an insightface model pack (with .onnx files); for images that are "
                "aligned already, set align to 'none'",
            )
            assert models is not None
            self._aligner = PhotoAligner(models, face_index)
        self.align, self.models = align, models

    def __call__(self, path: Path | str, image_size: int) -> UInt8[np.ndarray, "S S 3"]:
        """A reference; raises DataError as `read_image` or `PhotoAligner`."""
        if self._aligner is None:
            return read_image(path, image_size)
        return self._aligner(path, image_size).image

    def largest(self, path: Path | str, image_size: int) -> UInt8[np.ndarray, "S S 3"]:
        """An exemplar; raises DataError as `read_image` or `PhotoAligner`."""
        if self._aligner is None:
            return read_image(path, image_size)
        return self._aligner(path, image_size, face_index=0).image
