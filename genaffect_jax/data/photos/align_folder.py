"""A folder of photos as a folder of aligned images, with the same people and expressions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genaffect_jax.data.photos.reader import AlignedPhoto
from genaffect_jax.data.sources.layouts import LabelledFile, Row, expression_in_name, list_folder, without_image_suffix
from genaffect_jax.data.sources.tables import METADATA
from genaffect_jax.errors import ConfigError, DataError, require
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.image_grid import write_png
from genaffect_jax.io.images import MAX_PIXELS
from genaffect_jax.io.progress import progress_bar

ALIGNED = "aligned.jsonl"
REJECTED = "rejected.jsonl"
LARGEST_SIDE = math.isqrt(MAX_PIXELS)
"""Side of the largest images that are written, in pixels: larger ones could not be read again."""
_NAMED = 5  # files listed in an error message


@dataclass(frozen=True)
class FolderReport:
    """Numbers of aligned and rejected files of a folder."""

    aligned: int
    """Images written."""
    rejected: int
    """Files left out; `rejected.jsonl` has each with its reason."""
    several: int
    """Images whose photo shows more than one face."""


def align_folder(root: Path, out: Path, align: Callable[[Path, int], AlignedPhoto], size: int) -> FolderReport:
    """Aligns all photos of an image folder into a new folder, atomically.

    Images keep their place, `<identity>/<expression>[_n].png`. A folder with metadata gets a `metadata.jsonl` of
    file, identity and expression. `aligned.jsonl` lists for each image its source file, the face's box (left, top,
    right, bottom), score and size, the number of faces, and the share of the image inside the photo. `rejected.jsonl`
    lists every file that was left out, with the reason.

    Args:
        root: the photos, in a layout of `data.sources.layouts`.
        out: the new folder.
        align: aligns one file (see `data.photos.reader.PhotoAligner`).
        size: side of the images, in pixels.

    Raises:
        DataError: there is no such folder, its metadata is malformed, or no photo could be aligned.
        ConfigError: `out` exists or lies in `root`, or the size is not positive.
    """
    require_side(size)
    if out.exists():
        raise ConfigError("exists; name a new folder", field="out", found=out)
    if root.resolve() in out.resolve().parents:
        raise ConfigError(f"lies in {root}, whose images it would become part of", field="out", found=out)
    listing = list_folder(root)
    by_metadata = listing.layout in METADATA
    rejected = [*listing.rejected]
    rows: list[dict[str, object]] = []
    labels: list[dict[str, str]] = []
    taken: set[str] = set()
    several = 0
    with new_folder(out) as new, progress_bar("aligning photos", len(listing.labelled)) as step:
        for labelled in listing.labelled:
            step(1)
            try:
                photo = align(root / labelled.file, size)
            except DataError as e:
                rejected.append(Row(labelled.file, str(e)))
                continue
            name = _free_name(labelled, taken)
            write_png(photo.image, new / name)
            several += photo.faces > 1
            rows.append(
                {
                    "file": name,
                    "source": labelled.file,
                    "faces": photo.faces,
                    "score": round(photo.face.score, 4),
                    "box": [round(edge, 1) for edge in photo.face.box],
                    "face_side": round(photo.face_side, 1),
                    "inside": round(photo.inside, 4),
                }
            )
            labels.append({"file": name, "identity": labelled.identity, "expression": labelled.expression})
        if not rows:
            examples = "; ".join(f"{row.file}: {row.reason}" for row in rejected[:_NAMED])
            raise DataError(f"{root}: no photo could be aligned, of {len(rejected)} files ({examples or 'none'})")
        _write_rows(new / ALIGNED, rows)
        _write_rows(new / REJECTED, [{"file": r.file, "reason": r.reason} for r in sorted(rejected, key=_file)])
        if by_metadata:
            _write_rows(new / METADATA[0], labels)
    return FolderReport(len(rows), len(rejected), several)


def require_side(size: int) -> None:
    """Raises ConfigError unless images can have this side, in pixels."""
    require(1 <= size <= LARGEST_SIDE, "size", size, f"must be 1 to {LARGEST_SIDE} pixels")


def _free_name(labelled: LabelledFile, taken: set[str]) -> str:
    """The file's name as a PNG's; where `joy.jpg` stands beside `joy.png`, one becomes `joy_<n>.png`."""
    path = Path(labelled.file)
    name = path.with_name(f"{without_image_suffix(path.name)}.png").as_posix()
    number = 1
    while name in taken:
        number += 1
        name = path.with_name(f"{expression_in_name(path.name)}_{number}.png").as_posix()
    taken.add(name)
    return name


def _file(row: Row) -> str:
    return row.file


def _write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
