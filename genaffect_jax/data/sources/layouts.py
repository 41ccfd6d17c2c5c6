"""The two layouts of an image folder: its files, and the person and expression of each.

No file is decoded here. Every file below the root is in exactly one of three lists: `labelled` (an image to check),
`rejected` (an unusable image) or `ignored` (not an image).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from genaffect_jax.data.sources.tables import METADATA, is_table, person_name, read_table
from genaffect_jax.errors import DataError

# Files that systems, tools and people leave beside images.
IGNORED_NAMES: frozenset[str] = frozenset({"thumbs.db", "desktop.ini", "license", "readme", "copying"})
IGNORED_SUFFIXES: frozenset[str] = frozenset(
    {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".html", ".pdf"}
)
# Suffixes of images, read here or not. Any other text behind a dot belongs to the name: `AU12=0.5`, `joy:1.3`.
IMAGE_SUFFIXES: frozenset[str] = frozenset(
    [
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2c", ".j2k", ".jfif", ".jif", ".jp2", ".jpc"),
        *(".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pam", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tga", ".tif", ".tiff", ".webp"),
    ]
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

    Names of people are compared as `tables.person_name` writes them, so that one name in two forms of Unicode, as by
    macOS and Linux, is one person; a table finds its files in either form.

    Raises:
        DataError: the root is missing or not a folder, or its metadata is malformed (`tables.read_table`), names a file
            that is missing, listed twice or outside the root, stands in two files, or in a folder below the root.
    """
    require_folder(root)
    metadata = [name for name in METADATA if (root / name).is_file()]
    if len(metadata) > 1:
        raise DataError(f"{root}: has both {' and '.join(metadata)}; keep the one that is right")
    return _list_metadata(root, metadata[0]) if metadata else _list_identity_folders(root)


def table_above(root: Path) -> str:
    """A sentence on a table in the folder above that names files of this one, or an empty text."""
    root = root.resolve()
    for name in METADATA:
        if any((root / other).exists() for other in METADATA) or not is_table(root.parent / name):
            continue
        try:
            rows = read_table(root.parent / name)
        except DataError:
            continue
        if any(os.path.normpath(row.file).startswith(f"{root.name}/") for row in rows):
            return f". {root.parent / name} names files of this folder: to use it, data.root is {root.parent}"
    return ""


def without_image_suffix(file_name: str) -> str:
    """A file's name without the suffix of an image; a name with another suffix or none stays whole."""
    path = Path(file_name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def expression_in_name(file_name: str) -> str:
    """The expression in a file's name: `joy` for `joy.png` and `joy_2.png`, an AU list for `AU6=0.5,AU12=0.9_1.png`."""
    stem = without_image_suffix(file_name)
    numbered = _NUMBERED.fullmatch(stem)
    return numbered[1] if numbered else stem


def _list_identity_folders(root: Path) -> Listing:
    listing = Listing("<identity>/<expression>[_n] folders")
    for file in _walk(root, listing):
        parts = file.split("/")
        if parts[-1] in METADATA and is_table(root / file):
            raise DataError(
                f"{root}: has no table of its own, but {file} is one; data.root must be the folder with the table "
                f"({(root / file).parent}), or the table must lie in {root}"
            )
        if reason := _ignored(file):
            listing.ignored.append(Row(file, reason))
        elif len(parts) == 2 and not person_name(parts[0]):
            listing.rejected.append(Row(file, "unlabelled: the folder's name is blank"))
        elif len(parts) == 2:
            identity = person_name(parts[0])
            listing.labelled.append(LabelledFile(file, identity, expression_in_name(parts[1])))
        else:
            listing.rejected.append(Row(file, "unlabelled: an image lies in <identity>/<expression>[_n].<suffix>"))
    return listing


def _list_metadata(root: Path, name: str) -> Listing:
    listing = Listing(name)
    files = _walk(root, listing)
    composed: dict[str, list[str]] = defaultdict(list)
    for file in files:
        composed[unicodedata.normalize("NFC", file)].append(file)
    seen: dict[str, int] = {}
    missing: list[str] = []
    for row in read_table(root / name):
        where = f"{root / name}, line {row.line}"
        file = os.path.normpath(row.file).replace(os.sep, "/")
        if os.path.isabs(row.file) or file == ".." or file.startswith("../"):
            raise DataError(f"{where}: file {row.file!r} lies outside the folder; paths are relative to {root}")
        if not _is_file(root / file):
            forms = composed[unicodedata.normalize("NFC", file)]
            file = forms[0] if len(forms) == 1 else file
        if file in seen:
            raise DataError(f"{where}: file {row.file!r} is already named in line {seen[file]}")
        seen[file] = row.line
        if not _is_file(root / file):
            missing.append(f"{row.file} (line {row.line})")
        elif row.identity and row.expression:
            listing.labelled.append(LabelledFile(file, row.identity, row.expression))
        else:
            absent = "expression" if row.identity else "identity"
            listing.rejected.append(Row(file, f"unlabelled: no {absent} in {name}"))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"{root / name}: names missing files: {', '.join(missing[:5])}{more}")
    for file in files:
        if file not in seen and file != name:
            if reason := _ignored(file):
                listing.ignored.append(Row(file, reason))
            else:
                listing.rejected.append(Row(file, f"unlabelled: not named in {name}"))
    return listing


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def _walk(root: Path, listing: Listing) -> list[str]:
    """All files below `root`, as sorted relative paths with forward slashes; links to folders are followed.

    A link to a folder above it would never end, so it is listed as a file, which cannot be read. A folder that cannot
    be listed and a name that is not UTF-8 go into the listing, the name with its bytes as `\\xfc`: it can be neither
    compared nor stored as text.
    """
    files: list[str] = []

    def refuse(error: OSError) -> None:
        folder = Path(os.fsdecode(error.filename)).relative_to(root).as_posix()
        listing.rejected.append(Row(_printable(folder), f"folder cannot be listed: {error.strerror}"))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        above = {os.path.realpath(p) for p in (Path(folder), *Path(folder).parents)}
        loops = [name for name in folders if os.path.realpath(os.path.join(folder, name)) in above]
        folders[:] = [name for name in folders if name not in loops]
        relative = Path(folder).relative_to(root)
        files += [(relative / name).as_posix() for name in (*names, *loops)]
    for file in files:
        if (shown := _printable(file)) != file:
            if reason := _ignored(file):
                listing.ignored.append(Row(shown, reason))
            else:
                listing.rejected.append(Row(shown, "name is not UTF-8: rename the file or its folder"))
    return sorted(file for file in files if _printable(file) == file)


def _printable(file: str) -> str:
    """The name, with bytes that are not UTF-8 as `\\xfc`."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _ignored(file: str) -> str | None:
    parts = file.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return "hidden file"
    name = parts[-1].lower()
    # AU lists hold dots ("AU6=0.5"), so a suffix counts here only if it is one of the known ones.
    if name in IGNORED_NAMES or Path(name).suffix in IGNORED_SUFFIXES:
        return "text or system file"
    return None
