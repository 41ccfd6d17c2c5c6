"""Source `folder`: image files of people, checked once before training and decoded on demand."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genaffect_jax.data.sources.base import Example, count_text
from genaffect_jax.data.sources.layouts import Listing, Row, list_folder, table_above
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.action_units import WIDTH
from genaffect_jax.expressions.grammar import ExpressionError, parse_expression
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.images import FORMATS, MAX_PIXELS, read_image
from genaffect_jax.io.output import PlainConsole, print_plainly
from genaffect_jax.io.progress import progress_bar

_NAMED = 5  # names listed in an error message before "and n more"


class FolderRecords(Protocol):
    """Files of a run folder that the check of an image folder writes (`checkpoints.run_dir.RunDir`)."""

    @property
    def rejected(self) -> Path:
        """Files that are not used, one JSON row each."""
        ...

    @property
    def checked(self) -> Path:
        """Files that have been decoded, as JSON."""
        ...


class FolderSource:
    """Image files below one folder; `open_folder` checks the files and makes it.

    Attributes:
        root: the folder.
        files: path of each example below it.
        image_size: side S of the images, in pixels.
        rejected: files that are not used, each with its reason.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        images: Sequence[Example],
        image_size: int,
        digest: str,
        rejected: Sequence[Row] = (),
    ) -> None:
        self.root = root
        self.files = tuple(files)
        self.image_size = image_size
        self.rejected = tuple(rejected)
        self._images = tuple(images)
        self._digest = digest

    @property
    def examples(self) -> Sequence[Example]:
        """All usable images, sorted by file."""
        return self._images

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        return WIDTH

    def load(self, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """Decodes one file.

        Raises:
            DataError: the file was changed or deleted after it was checked and can no longer be read.
        """
        path = self.root / self.files[index]
        try:
            return read_image(path, self.image_size)
        except DataError as e:
            raise DataError(f"{path}: was readable when the folder was checked, but is no longer: {e}") from e

    def describe(self) -> str:
        """One line for users."""
        return f"folder {self.root}: {count_text(self.examples)}, {self.image_size} x {self.image_size} pixels"

    def fingerprint(self) -> str:
        """Digest of every file's path below the folder, content, person and expression, and of the image size; where
        the folder lies, and when files were copied, does not matter."""
        return self._digest


def open_folder(
    root: Path, image_size: int, max_rejected: float, records: FolderRecords | None, least_expressions: int = 2
) -> FolderSource:
    """Lists an image folder, decodes every file once and keeps the good ones.

    `records.rejected` is written before any check can fail: one row for every file that is not used, with `file`,
    `status` (`rejected`, or `ignored` for hidden, text and system files) and `reason`. `records.checked` keeps path,
    size, time of change and SHA-256 of every decoded file, so that a second start is quick.

    Args:
        root: the folder; its layouts are those of `data.sources.layouts`.
        image_size: side S of the images that `load` returns, in pixels.
        max_rejected: largest tolerated share of rejected files among all files that are not ignored.
        records: files to write, those of the run folder; their folder is made if missing. None writes nothing: messages
            then name the files themselves, and a second start decodes all of them again.
        least_expressions: different expressions that every person must have; 0 keeps people with any number.

    Raises:
        DataError: there is no such folder, its metadata is malformed, no image is usable, the rejected share is above
            `max_rejected`, or a person has fewer than `least_expressions` different expressions left.
    """
    listing = list_folder(root)
    if records is not None:
        records.rejected.parent.mkdir(parents=True, exist_ok=True)
    if not listing.labelled and not listing.rejected:
        raise DataError(f"{root}: no images found (looked for {listing.layout}){table_above(root)}")
    checked = _check(root, [f.file for f in listing.labelled], image_size, None if records is None else records.checked)
    files: list[str] = []
    images: list[Example] = []
    rejected = list(listing.rejected)
    for labelled in listing.labelled:
        if reason := checked[labelled.file].reason:
            rejected.append(Row(labelled.file, reason))
            continue
        try:
            expression = parse_expression(labelled.expression)
        except ExpressionError as e:
            rejected.append(Row(labelled.file, f"unlabelled: {e}"))
            continue
        files.append(labelled.file)
        images.append(Example(labelled.identity, expression.name, expression.vector))
    rejected.sort(key=lambda row: row.file)
    examples = "; ".join(f"{row.file}: {row.reason}" for row in rejected[:_NAMED])
    see = examples
    if records is not None:
        _write_rejected(records.rejected, rejected, listing.ignored)
        see = f"see {records.rejected}"
    _report(root, len(images), rejected, listing, see)
    every_file = "" if records is None else f"; every file and its reason: {records.rejected}"
    _refuse_bad_folder(root, images, rejected, max_rejected, f"({examples}){every_file}")
    _refuse_few_expressions(root, images, listing, least_expressions, every_file)
    return FolderSource(root, files, images, image_size, _digest(files, images, checked, image_size), rejected)


def _refuse_bad_folder(
    root: Path, images: list[Example], rejected: list[Row], max_rejected: float, examples: str
) -> None:
    if not images:
        raise DataError(f"{root}: no usable image among {len(rejected)} files {examples}{table_above(root)}")
    share = len(rejected) / (len(rejected) + len(images))
    if share > max_rejected:
        raise DataError(
            f"{root}: {len(rejected)} of {len(rejected) + len(images)} files ({share:.0%}) are unusable, "
            f"data.max_rejected={max_rejected:g} allows {max_rejected:.0%} {examples}"
            f"{table_above(root)}"
        )


def _refuse_few_expressions(root: Path, images: list[Example], listing: Listing, least: int, every_file: str) -> None:
    expressions: dict[str, set[bytes]] = {f.identity: set() for f in listing.labelled}
    for image in images:
        expressions[image.identity].add(image.expression_key)
    alone = sorted(identity for identity, different in expressions.items() if len(different) < least)
    if alone:
        names = _names([f"{identity} ({len(expressions[identity])})" for identity in alone])
        raise DataError(
            f"{root}: people with fewer than {least} different expressions: {names}. Reference and target must differ: "
            f"add images of these people or take their files out{every_file}"
        )


@dataclass(frozen=True)
class _Checked:
    """A file that was decoded."""

    digest: str | None
    """SHA-256 of its content; None if it cannot be read."""
    reason: str | None
    """Why it cannot be used; None if it can."""


def _check(root: Path, files: list[str], image_size: int, stored: Path | None) -> dict[str, _Checked]:
    """Decodes every file; those that `stored` knows, with the same size and time of change, are not decoded again."""
    # The rules are part of the key: with other formats, limits or another reader, old results do not count.
    rules = {"reader": 2, "formats": list(FORMATS), "max_pixels": MAX_PIXELS}
    stamps = {file: _stamp(root / file) for file in files}
    known = {} if stored is None else _known(stored, rules, root)
    verdicts = {
        file: _Checked(*known[file][1:]) for file in files if file in known and list(known[file][0]) == stamps[file]
    }
    new = [file for file in files if file not in verdicts]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with progress_bar("checking images", len(new)) as step, warnings.catch_warnings():
        # Pillow warns of large images below its own limit; the limit here is lower and gives a reason.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            for file, verdict in zip(new, pool.map(lambda file: _decode(root / file, image_size), new), strict=True):
                verdicts[file] = verdict
                step(1)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest of the folder
    if stored is not None:
        rows = {file: [stamps[file], verdict.digest, verdict.reason] for file, verdict in verdicts.items()}
        write_atomically(stored, json.dumps({"rules": rules, "root": str(root.resolve()), "files": rows}))
    return verdicts


def _known(stored: Path, rules: dict, root: Path) -> dict[str, tuple[list[int], str | None, str | None]]:
    """What an earlier start found, by file; nothing if it is not readable or of other rules."""
    try:
        content = json.loads(stored.read_text("utf-8"))
        if content["rules"] != rules or content["root"] != str(root.resolve()):
            return {}
        return {file: (stamp, digest, reason) for file, (stamp, digest, reason) in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _decode(path: Path, image_size: int) -> _Checked:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        digest = None  # reading it gives the reason
    try:
        read_image(path, image_size)
    except DataError as e:
        return _Checked(digest, str(e))
    return _Checked(digest, None)


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]  # a broken link; reading it gives the reason
    return [status.st_size, status.st_mtime_ns]


def _digest(files: list[str], images: list[Example], checked: dict[str, _Checked], image_size: int) -> str:
    digest = hashlib.sha256(f"folder {image_size}".encode())
    for file, image in zip(files, images, strict=True):
        digest.update(json.dumps([file, checked[file].digest, image.identity, image.label]).encode())
        digest.update(image.expression_key)
    return digest.hexdigest()


def _write_rejected(path: Path, rejected: list[Row], ignored: list[Row]) -> None:
    rows = [("rejected", row) for row in rejected] + [("ignored", row) for row in ignored]
    lines = [
        json.dumps({"file": row.file, "status": status, "reason": row.reason}, ensure_ascii=False)
        for status, row in rows
    ]
    text = "".join(line + "\n" for line in lines)
    if not path.exists() or path.read_text("utf-8", errors="replace") != text:  # else nothing has changed
        write_atomically(path, text)


def _report(root: Path, usable: int, rejected: list[Row], listing: Listing, see: str) -> None:
    if not rejected:
        return
    kinds: dict[str, int] = defaultdict(int)
    for row in rejected:
        kinds[row.reason.split(":")[0].split(" (")[0]] += 1
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print_plainly(
        PlainConsole(),
        f"{root}: {usable} images used, {len(rejected)} rejected ({counts}), {len(listing.ignored)} other files "
        f"ignored; {see}",
    )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
