"""`AvatarSet`: images of one identity with their expressions and settings, and their folder on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genaffect_jax.errors import ConfigError, DataError
from genaffect_jax.expressions.action_units import CHANNELS
from genaffect_jax.expressions.grammar import Expression
from genaffect_jax.io.animation import write_animation
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.image_grid import contact_sheet, write_png
from genaffect_jax.version import __version__

SETTINGS_FILE = "set.json"


@dataclass(frozen=True)
class AvatarSet:
    """Images of one identity, sampled together.

    Attributes:
        references: uint8 [R, S, S, 3], the images of the person.
        images: uint8 [E, S, S, 3], one per expression.
        expressions: names and vectors, in the order of `images`.
        anchors: the expressions of the anchors; empty if every image was sampled by itself.
        settings: all other data that decided the images: model, seed, identity, steps, guidance, versions.
    """

    references: UInt8[np.ndarray, "R S S 3"]
    images: UInt8[np.ndarray, "E S S 3"]
    expressions: tuple[Expression, ...]
    anchors: tuple[Expression, ...]
    settings: dict[str, Any]

    @property
    def reference(self) -> UInt8[np.ndarray, "S S 3"]:
        """The first reference."""
        return self.references[0]

    def sheet(self, columns: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The references and every image, labelled."""
        return contact_sheet(
            [*self.references, *self.images],
            ["reference"] * len(self.references) + [e.name for e in self.expressions],
            columns=columns,
        )

    def note(self) -> dict[str, str]:
        """Text entries of the image files: they are generated images, by which model and with which seed."""
        return {
            "Software": f"genaffect_jax {__version__}",
            "Comment": "generated image; model {model}, seed {seed}".format(**self.settings),
        }

    def save(self, folder: Path, animation: Literal["gif", "webp"] | None = None) -> None:
        """Writes `sheet.png`, `NN_<expression>.png`, `reference.png` and `set.json`, all files or none.

        Several references are named `reference_1.png`, `reference_2.png` and so on. An earlier set in `folder` is
        replaced. With `animation`, `morph.gif` or `morph.webp` shows the images in their order.

        Raises:
            ConfigError: `folder` holds files that are not an avatar set.
        """
        folder, note = Path(folder), self.note()
        check_output(folder)
        with new_folder(folder, replace=True) as new:
            references = [
                f"reference{f'_{n + 1}' if len(self.references) > 1 else ''}.png" for n in range(len(self.references))
            ]
            for name, reference in zip(references, self.references, strict=True):
                write_png(reference, new / name)
            write_png(self.sheet(), new / "sheet.png", note)
            records, digits = [], max(2, len(str(len(self.images))))
            for number, (image, expression) in enumerate(zip(self.images, self.expressions, strict=True), 1):
                name = f"{number:0{digits}d}_{expression.slug}.png"
                write_png(image, new / name, note)
                records.append({"file": name, **self._record(expression)})
            saved = {
                **self.settings,
                "references": references,
                "images": records,
                "anchor_expressions": [self._record(e) for e in self.anchors],
            }
            if animation is not None:
                write_animation(list(self.images), new / f"morph.{animation}", "; ".join(note.values()))
            (new / SETTINGS_FILE).write_text(json.dumps(saved, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> AvatarSet:
        """Reads a set that `save` wrote.

        Raises:
            DataError: the folder holds no set, or it is damaged.
        """
        folder = Path(folder)
        try:
            saved = json.loads((folder / SETTINGS_FILE).read_text())
            references = np.stack([_read_png(folder / name) for name in saved.pop("references")])
            records, anchors = saved.pop("images"), saved.pop("anchor_expressions")
            images = np.stack([_read_png(folder / entry["file"]) for entry in records])
            expressions, shared = (tuple(map(_expression, entries)) for entries in (records, anchors))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f"{folder}: no avatar set, or a damaged one ({type(e).__name__}: {e})") from e
        return cls(references, images, expressions, shared, saved)

    def _record(self, expression: Expression) -> dict[str, Any]:
        numbers = [float(v) for v in expression.vector]
        units = self.settings["config"]["conditioning"]["expression_space"] == "units"
        return {
            "expression": expression.name,
            "provenance": expression.provenance,
            "word": expression.word,
            "weight": expression.weight,
            "vector": dict(zip(CHANNELS, numbers, strict=True)) if units else numbers,
        }


def check_output(folder: Path) -> None:
    """Raises ConfigError unless `folder` is new, empty, or holds an earlier avatar set."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError("is a file; name a folder", field="out", found=folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).exists():
        raise ConfigError("holds files that are no avatar set; name a new or empty folder", field="out", found=folder)


def _expression(record: dict[str, Any]) -> Expression:
    vector = record["vector"]
    numbers = [vector[c] for c in CHANNELS] if isinstance(vector, dict) else vector
    return Expression(
        record["expression"], np.array(numbers, np.float32), record["provenance"], record["word"], record["weight"]
    )


def _read_png(path: Path) -> UInt8[np.ndarray, "S S 3"]:
    with Image.open(path, formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))
