"""The two layouts of an image folder: its files, and the person and expression of each.

No file is decoded here. Every file below the root is in exactly one of three lists: `labelled` (an image to check),
`rejected` (an unusable image) or `ignored` (not an image).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from genaffect_jax.errors import DataError

METADATA: tuple[str, ...] = ("metadata.jsonl", "metadata.csv")
# `file_name` is the column's name in Hugging Face's imagefolder.
FILE_COLUMNS: tuple[str, ...] = ("file", "file_name")
# Files that systems, tools and people leave beside images.
IGNORED_NAMES: frozenset[str] = frozenset({"thumbs.db", "desktop.ini", "license", "readme", "copying"})
IGNORED_SUFFIXES: frozenset[str] = frozenset(
    {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".html", ".pdf"}
)
_NUMBERED = re.compile(r"(.+?)_\d+")


@dataclass(frozen=True)
class Row:
    """A file without a usable image, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class LabelledFile:
    """An image file with its person and expression as written, all unchecked."""

    file: str
    """Path relative to the root, with forward slashes."""
    identity: str
    expression: str


@dataclass
class Listing:
    """Every file of a folder, sorted into three lists."""

    layout: str
    labelled: list[LabelledFile] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    ignored: list[Row] = field(default_factory=list)


def require_folder(root: Path) -> None:
    """Checks that the root is a folder.

    Raises:
        DataError: it is missing, or not a folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'} (data.root)")


def list_folder(root: Path) -> Listing:
    """Lists a folder by its layout: metadata.jsonl or metadata.csv if there is one, else one folder per person.

    Raises:
        DataError: the root is missing or not a folder, or its metadata is malformed: missing columns, a file that is
            missing, listed twice or outside the root, or two metadata files.
    """
    require_folder(root)
    metadata = [name for name in METADATA if (root / name).is_file()]
    if len(metadata) > 1:
        raise DataError(f"{root}: has both {' and '.join(metadata)}; keep the one that is right")
    return _list_metadata(root, metadata[0]) if metadata else _list_identity_folders(root)


def expression_in_name(file_name: str) -> str:
    """The expression in a file's name: `joy` for `joy.png` and `joy_2.png`, an AU list for `AU6=0.5,AU12=0.9_1.png`."""
    stem = Path(file_name).stem
    numbered = _NUMBERED.fullmatch(stem)
    return numbered[1] if numbered else stem


def _list_identity_folders(root: Path) -> Listing:
    listing = Listing("<identity>/<expression>[_n] folders")
    for file in _walk(root):
        parts = file.split("/")
        if reason := _ignored(file):
            listing.ignored.append(Row(file, reason))
        elif len(parts) == 2:
            listing.labelled.append(LabelledFile(file, parts[0], expression_in_name(parts[1])))
        else:
            listing.rejected.append(Row(file, "unlabelled: an image lies in <identity>/<expression>[_n].<suffix>"))
    return listing


def _list_metadata(root: Path, name: str) -> Listing:
    listing = Listing(name)
    seen: dict[str, int] = {}
    missing: list[str] = []
    for line, values in _read_jsonl(root / name) if name.endswith(".jsonl") else _read_csv(root / name):
        where = f"{root / name}, line {line}"
        column = next((c for c in FILE_COLUMNS if c in values), None)
        absent = [c for c in ("identity", "expression") if c not in values]
        if column is None or absent:
            wanted = [*([] if column else [" or ".join(FILE_COLUMNS)]), *absent]
            raise DataError(f"{where}: missing columns {', '.join(wanted)} (found: {', '.join(values) or 'none'})")
        written, identity, expression = (_text(values[c], c, where) for c in (column, "identity", "expression"))
        file = os.path.normpath(written).replace(os.sep, "/")
        if not written:
            raise DataError(f"{where}: {column} is empty")
        if os.path.isabs(written) or file == ".." or file.startswith("../"):
            raise DataError(f"{where}: file {written!r} lies outside the folder; paths are relative to {root}")
        if file in seen:
            raise DataError(f"{where}: file {written!r} is already named in line {seen[file]}")
        seen[file] = line
        if not (root / file).is_file():
            missing.append(f"{written} (line {line})")
        elif identity and expression:
            listing.labelled.append(LabelledFile(file, identity, expression))
        else:
            listing.rejected.append(Row(file, f"unlabelled: no {'expression' if identity else 'identity'} in {name}"))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"{root / name}: names missing files: {', '.join(missing[:5])}{more}")
    for file in _walk(root):
        if file not in seen and file != name:
            if reason := _ignored(file):
                listing.ignored.append(Row(file, reason))
            else:
                listing.rejected.append(Row(file, f"unlabelled: not named in {name}"))
    return listing


def _walk(root: Path) -> list[str]:
    """All files below `root`, as sorted relative paths with forward slashes; links to folders are followed.

    A link to a folder above it would never end, so it is listed as a file, which cannot be read.
    """
    files: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        above = {os.path.realpath(p) for p in (Path(folder), *Path(folder).parents)}
        loops = [name for name in folders if os.path.realpath(os.path.join(folder, name)) in above]
        folders[:] = [name for name in folders if name not in loops]
        relative = Path(folder).relative_to(root)
        files += [(relative / name).as_posix() for name in (*names, *loops)]
    return sorted(files)


def _ignored(file: str) -> str | None:
    parts = file.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return "hidden file"
    name = parts[-1].lower()
    # AU lists hold dots ("AU6=0.5"), so a suffix counts here only if it is one of the known ones.
    if name in IGNORED_NAMES or Path(name).suffix in IGNORED_SUFFIXES:
        return "text or system file"
    return None


def _text(value: object, column: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (dict, list, bool)):
        raise DataError(f"{where}: {column} is {json.dumps(value)}; must be a text")
    return str(value).strip()


def _read_jsonl(path: Path) -> list[tuple[int, dict[str, object]]]:
    rows: list[tuple[int, dict[str, object]]] = []
    for line, text in enumerate(_read(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except json.JSONDecodeError as e:
            raise DataError(f"{path}, line {line}: not JSON ({e})") from e
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {line}: {text[:60]!r} is no JSON object")
        rows.append((line, values))
    return rows


def _read_csv(path: Path) -> list[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(_read(path), newline=""))
    rows: list[tuple[int, dict[str, object]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for values in reader:
            if len(values) != len(header):
                if not values:
                    continue
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(values)} fields, the header has {len(header)} "
                    "(a text with commas needs quotes)"
                )
            rows.append((reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num}: {e}") from e
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 text ({e})") from e
