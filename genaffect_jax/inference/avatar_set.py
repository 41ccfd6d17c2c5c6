"""`AvatarSet`: images of one identity with their expressions and settings, and their folder on disk."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genaffect_jax.errors import DataError, GenAffectError, InUseError, OutputError
from genaffect_jax.expressions.action_units import CHANNELS
from genaffect_jax.expressions.grammar import Expression
from genaffect_jax.inference.arguments import Animation, checked_animation, checked_path
from genaffect_jax.inference.set_folder import FILES, SETTINGS_FILE, check_output, own_files, read_index
from genaffect_jax.io.animation import write_animation
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.destination import real_folder
from genaffect_jax.io.file_set import STAGE, Index, free_name, replace_files
from genaffect_jax.io.image_grid import contact_sheet, png_bytes, write_png
from genaffect_jax.io.lock import locked
from genaffect_jax.version import __version__

# How long to wait for another process that is saving in the same folder: a large set takes seconds.
LOCK_WAIT_S = 120.0
READ_ATTEMPTS = 20
# Expressions that `repr` names.
_NAMED = 6
DAMAGED = "no avatar set, or a damaged one"


@dataclass(frozen=True)
class Origin:
    """The folder that a set was read from, and how many images it had then."""

    folder: Path
    images: int


@dataclass(frozen=True, repr=False)
class AvatarSet:
    """Images of one identity, sampled together.

    Attributes:
        references: uint8 [R, S, S, 3], the images of the person.
        images: uint8 [E, S, S, 3], one per expression.
        expressions: names and vectors, in the order of `images`.
        anchors: the expressions of the anchors; empty if every image was sampled by itself.
        settings: all other data that decided the images: model, seed, identity, steps, guidance, versions.
        origin: where the set was read from; `save` finds additions of others by it.
    """

    references: UInt8[np.ndarray, "R S S 3"]
    images: UInt8[np.ndarray, "E S S 3"]
    expressions: tuple[Expression, ...]
    anchors: tuple[Expression, ...]
    settings: dict[str, Any]
    origin: Origin | None = field(default=None, repr=False, compare=False)

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

    def __repr__(self) -> str:
        names = [e.name for e in self.expressions]
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        return f"<AvatarSet of {self.settings.get('identity')}: {shown}; {self.images.shape[1]} px>"

    def _repr_png_(self) -> bytes:
        """The sheet, which a notebook shows."""
        return png_bytes(self.sheet(), fast=True)

    def note(self) -> dict[str, str]:
        """Text entries of the image files: they are generated images, by which model and with which seed."""
        return {
            "Software": f"genaffect_jax {__version__}",
            "Comment": "generated image; model {model}, seed {seed}".format(**self.settings),
        }

    def save(self, folder: Path, animation: Animation | None = None) -> AvatarSet:
        """Writes `sheet.png`, `NN_<expression>.png`, `reference.png` and `set.json`, all files or none.

        Several references are named `reference_1.png`, `reference_2.png` and so on. With `animation`, `morph.gif` or
        `morph.webp` shows the images in their order. In an existing folder, only the files of the set that it holds are
        replaced or removed; a file of somebody else keeps its name, and the set's file gets another. The folder itself
        stays, and links to it are followed. At every moment one whole set can be read, the old or the new one, also
        after the process was killed (`io.file_set`).

        Images that were added to this set's folder since `load` stay; those of this set follow them.

        Returns:
            The set as saved, with the images that others added.

        Raises:
            ConfigError: `folder` holds files that are not an avatar set, or cannot be written to; or an argument is not
                allowed.
            DataError: the set in `folder` has become another one since it was read, or the same expression was added.
            InUseError: another process is saving in `folder` and does not end.
            OutputError: writing failed; the message says what is there now.
        """
        folder, animation = checked_path(folder, "folder"), checked_animation(animation)
        check_output(folder)
        place = real_folder(folder)
        try:
            if not place.exists():
                # If another process makes the folder meanwhile, its set is replaced below.
                with _made_meanwhile_passes(), new_folder(place) as new:
                    index = self._fill(new, animation, ())
                    names = sorted(path.name for path in new.iterdir())
                    (new / SETTINGS_FILE).write_text(index(lambda name: name, names))
                    return self._saved_as(self, place)
            with locked(place, wait_s=LOCK_WAIT_S):
                check_output(folder)
                merged = self._with_later_additions(place)
                old = own_files(place)
                others = {path.name for path in place.iterdir()} - set(old)
                replace_files(place, SETTINGS_FILE, lambda new: merged._fill(new, animation, others), old)
                return self._saved_as(merged, place)
        except OSError as e:
            raise OutputError(f"{folder}: cannot be written: {e.strerror or e}; {_what_is_there(place)}") from e

    @classmethod
    def load(cls, folder: Path) -> AvatarSet:
        """Reads a set that `save` wrote, also while another process is saving there.

        Raises:
            DataError: the folder holds no set, or it is damaged.
        """
        folder = checked_path(folder, "folder")
        for _ in range(READ_ATTEMPTS):
            index = read_index(folder)
            try:
                found = cls._read(folder, index)
            except DataError:
                if index == read_index(folder):
                    raise
                continue
            # Files take the names of old ones only after the index has changed (`io.file_set`).
            if index == read_index(folder):
                return found
        raise DataError(f"{folder}: changes too fast to be read")

    @classmethod
    def _read(cls, folder: Path, index: dict[str, Any]) -> AvatarSet:
        saved = {key: value for key, value in index.items() if key not in ("references", "images", FILES)}
        references = _read_images(folder, index["references"])
        images = _read_images(folder, [entry["file"] for entry in index["images"]])
        try:
            expressions = tuple(map(_expression, index["images"]))
            anchors = tuple(map(_expression, saved.pop("anchor_expressions")))
            saved["config"]["conditioning"]["expression_space"]  # decides how vectors are written
        except (ValueError, KeyError, TypeError, OverflowError) as e:
            raise DataError(f"{folder}: {DAMAGED} ({SETTINGS_FILE}: {type(e).__name__}: {e})") from e
        if len({expression.vector.size for expression in (*expressions, *anchors)}) != 1:
            raise DataError(f"{folder}: {DAMAGED} ({SETTINGS_FILE}: vectors of different lengths)")
        if references.shape[1:] != images.shape[1:]:
            raise DataError(f"{folder}: {DAMAGED} (references and images of different sizes)")
        return cls(references, images, expressions, anchors, saved, Origin(real_folder(folder), len(images)))

    def _fill(self, new: Path, animation: Animation | None, taken: Collection[str]) -> Index:
        """Writes all files but the index, under names that are not taken."""
        note = self.note()
        references = [
            free_name(f"reference{f'_{n + 1}' if len(self.references) > 1 else ''}.png", taken)
            for n in range(len(self.references))
        ]
        for name, reference in zip(references, self.references, strict=True):
            write_png(reference, new / name)
        write_png(self.sheet(), new / free_name("sheet.png", taken), note, fast=True)
        names, digits = [], max(2, len(str(len(self.images))))
        for number, (image, expression) in enumerate(zip(self.images, self.expressions, strict=True), 1):
            names.append(free_name(f"{number:0{digits}d}_{expression.slug}.png", taken))
            write_png(image, new / names[-1], note)
        if animation is not None:
            write_animation(list(self.images), new / free_name(f"morph.{animation}", taken), "; ".join(note.values()))

        def index(place: Callable[[str], str], own: Sequence[str]) -> str:
            saved = {
                **self.settings,
                "references": [place(name) for name in references],
                "images": [
                    {"file": place(name), **self._record(e)} for name, e in zip(names, self.expressions, strict=True)
                ],
                "anchor_expressions": [self._record(e) for e in self.anchors],
                FILES: list(own),
            }
            return json.dumps(saved, indent=2) + "\n"

        return index

    def _saved_as(self, saved: AvatarSet, place: Path) -> AvatarSet:
        # This object's images are in the folder now: saved once more, they are no additions.
        object.__setattr__(self, "origin", Origin(place, len(self.images)))
        return replace(saved, origin=Origin(place, len(saved.images)))

    def _with_later_additions(self, place: Path) -> AvatarSet:
        """This set; if it was read from this folder, with the images that came into it since."""
        if self.origin is None or self.origin.folder != place or not (place / SETTINGS_FILE).exists():
            return self
        there, known = type(self).load(place), self.origin.images
        if len(there.images) < len(self.images) and there._begins(self):
            return self
        ours = [_key(e) for e in self.expressions[known:]]
        first = replace(self, images=self.images[:known], expressions=self.expressions[:known])
        if not first._begins(there):
            raise DataError(f"{place}: has become another set since it was read; nothing was written")
        twice = [e.name for e in there.expressions[known:] if _key(e) in ours]
        if twice:  # its noise depends on how often the expression is in the set
            raise DataError(
                f"{place}: another process added {', '.join(twice)} meanwhile; nothing was written, add it again"
            )
        return replace(
            self,
            images=np.concatenate([there.images, self.images[known:]]),
            expressions=(*there.expressions, *self.expressions[known:]),
        )

    def _begins(self, other: AvatarSet) -> bool:
        """Whether the other set is this one, perhaps with more images at its end."""
        count = len(self.images)
        return (
            len(other.images) >= count
            and self.references.shape == other.references.shape
            and bool((self.references == other.references).all() and (self.images == other.images[:count]).all())
            and self.settings["model"] == other.settings["model"]
            and list(map(_key, self.expressions)) == list(map(_key, other.expressions[:count]))
            and list(map(_key, self.anchors)) == list(map(_key, other.anchors))
        )

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


def _expression(record: dict[str, Any]) -> Expression:
    vector = record["vector"]
    for key, kinds in (("expression", str), ("provenance", str), ("word", (str, NoneType)), ("weight", (int, float))):
        if not isinstance(record[key], kinds):
            raise TypeError(f"{key} is {type(record[key]).__name__}")
    numbers = np.array([vector[c] for c in CHANNELS] if isinstance(vector, dict) else vector, np.float32)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite([*numbers, record["weight"]]).all():
        raise ValueError("vector and weight must be finite numbers")
    return Expression(record["expression"], numbers, record["provenance"], record["word"], record["weight"])


@contextmanager
def _made_meanwhile_passes() -> Iterator[None]:
    try:
        yield
    except InUseError:
        pass
    except OSError as e:
        if e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _key(expression: Expression) -> tuple[str, bytes]:
    return expression.name, np.round(expression.vector, 4).astype(np.float32).tobytes()


def _read_images(folder: Path, names: Sequence[str]) -> UInt8[np.ndarray, "N S S 3"]:
    images = []
    for name in names:
        try:
            with Image.open(folder / name, formats=("PNG",)) as image:
                images.append(np.asarray(image.convert("RGB")))
        except Exception as e:  # with broken data, Pillow raises errors of any class
            what = e.strerror if isinstance(e, OSError) and e.strerror else f"{type(e).__name__}: {e}"
            raise DataError(f"{folder}: {DAMAGED} ({name}: {what})") from e
    if len({image.shape for image in images}) != 1 or images[0].shape[0] != images[0].shape[1]:
        raise DataError(f"{folder}: {DAMAGED} (images of different sizes, or not square)")
    return np.stack(images)


def _what_is_there(place: Path) -> str:
    """The set that stands in the folder after an error, in words."""
    if not place.exists():
        return "nothing was written"
    try:
        staged = any(name.startswith(STAGE) for name in own_files(place))
    except GenAffectError:
        return "what was there is as it was"
    return "the new set is there, in a hidden folder" if staged else "what was there is as it was"
