"""`python -m genaffect_jax.prepare photos`: align the faces of a folder of photos for training.

python -m genaffect_jax.prepare photos --root PHOTOS --out ALIGNED --models MODELS
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.data.photos.align_folder import REJECTED, align_folder, require_side
from genaffect_jax.data.photos.reader import MIN_FACE, PhotoAligner, require_face_choice


@dataclass(frozen=True)
class Arguments:
    """Find the face in every photo of a folder and write square images with the face at a fixed place."""

    root: Path
    """Photos: <identity>/<expression>[_n].<suffix>, or a folder with metadata.jsonl or metadata.csv."""
    out: Path
    """Folder to write, with the same layout and PNG files; it must not exist."""
    models: Path
    """Folder of an insightface model pack (.onnx files), or an insightface root with one; nothing is downloaded."""
    face_index: int = 0
    """Face to use in each photo, counted from the largest, 0."""
    size: int = 512
    """Side of the images, in pixels."""
    min_face: float = MIN_FACE
    """Least side of the square of eyes, nose and mouth, in pixels of the photo; photos below it are left out."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, largest=LARGEST_SIZE)
        require_face_choice(self.face_index, self.min_face)
        require_side(self.size)


def run(arguments: Arguments, console: Console) -> bool:
    """Aligns the photos and reports their number.

    Raises:
        ConfigError, DataError: see `data.photos.align_folder.align_folder`.
    """
    aligner = PhotoAligner(arguments.models, arguments.face_index, arguments.min_face)
    report = align_folder(arguments.root, arguments.out, aligner, arguments.size)
    console.print(
        f"{arguments.out}: {report.aligned} images ({report.several} of photos with several faces), "
        f"{report.rejected} files left out, see {arguments.out / REJECTED}",
        markup=False,
        emoji=False,
        highlight=False,
    )
    return True
