"""`python -m genaffect_jax.align`: a folder of photos as aligned pictures, ready for training.

python -m genaffect_jax.align --root PHOTOS --out ALIGNED --models MODELS
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from genaffect_jax.data.align_folder import REJECTED, align_folder
from genaffect_jax.data.photos import MIN_FACE, PhotoAligner
from genaffect_jax.training.run import run_reporting_errors


@dataclass(frozen=True)
class Arguments:
    """Find the face in every photo of a folder and write square pictures in which it has a fixed place."""

    root: Path
    """Photos: <identity>/<expression>[_n].<suffix>, or a folder with metadata.jsonl or metadata.csv."""
    out: Path
    """Folder to write; it must not exist. It has the same layout, of PNG files."""
    models: Path
    """Folder of an insightface model pack (.onnx files), or an insightface root with one; nothing is downloaded."""
    face_index: int = 0
    """Which face of each photo, counted from the largest, 0."""
    size: int = 512
    """Side of the pictures, in pixels."""
    min_face: float = MIN_FACE
    """Photos are left out whose square of eyes, nose and mouth is narrower than this, in pixels of the photo."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and aligns; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, use_underscores=True)

    def work(console: Console) -> bool:
        aligner = PhotoAligner(arguments.models, arguments.face_index, arguments.min_face)
        report = align_folder(arguments.root, arguments.out, aligner, arguments.size)
        console.print(
            f"{arguments.out}: {report.aligned} pictures ({report.several} of photos with several faces), "
            f"{report.rejected} files left out, see {arguments.out / REJECTED}",
            markup=False, highlight=False,
        )  # fmt: skip
        return True

    return run_reporting_errors(work)


if __name__ == "__main__":
    sys.exit(main())
