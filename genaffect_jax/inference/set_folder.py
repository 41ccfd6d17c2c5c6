"""The folder of an avatar set: what its `set.json` names as the set's own, and whether a set may be written there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from genaffect_jax.errors import ConfigError, DataError
from genaffect_jax.io.destination import real_folder, why_not_writable
from genaffect_jax.io.file_set import STAGE
from genaffect_jax.io.lock import LOCK_FILE

SETTINGS_FILE = "set.json"
FILES = "files"
"""The entry of `set.json` that lists all other files of the set."""
# A set's files lie in its folder, or in a hidden one while they are replaced; nothing else is read or removed.
_OWN_NAME = re.compile(rf"({re.escape(STAGE)}[0-9a-f]{{8}}/)?[^/\\\0]+\.(png|gif|webp)")
# Sheets and animations of sets from before `files` was written hold this comment.
_COMMENT = b"generated image; model"
# What file systems, desktops and version control leave in empty folders.
_NEUTRAL = re.compile(
    rf"lost\+found|\.DS_Store|Thumbs\.db|desktop\.ini|\.directory|\.gitkeep|\.gitignore|\.snapshot|\.nfs.*"
    rf"|{re.escape(LOCK_FILE)}.*|\.genaffect-probe\..*|{re.escape(STAGE)}.*"
)
_NAMED = 3


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `set.json`, with all names checked; the files themselves are not read.

    Raises:
        DataError: there is no such file, or it does not describe an avatar set.
    """
    file = folder / SETTINGS_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise DataError(f"{folder}: no avatar set ({SETTINGS_FILE}: {e.strerror or e})") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"{folder}: no avatar set ({SETTINGS_FILE} is no JSON: {e})") from e
    reason = _why_no_index(found)
    if reason is not None:
        raise DataError(f"{folder}: no avatar set, or a damaged one ({SETTINGS_FILE}: {reason})")
    return found


def own_files(folder: Path) -> list[str]:
    """The files of the set in a folder, without `set.json`, relative to it; none if there is no `set.json`.

    Raises:
        DataError: see `read_index`.
    """
    if not (folder / SETTINGS_FILE).exists():
        return []
    index = read_index(folder)
    named = [*index["references"], *(entry["file"] for entry in index["images"]), *index.get(FILES, ())]
    if FILES not in index:
        named += [name for name in ("sheet.png", "morph.gif", "morph.webp") if _has_comment(folder / name)]
    return [name for name in dict.fromkeys(named) if _is_file(folder / name)]


def check_output(folder: Path, field: str = "out", room: int = 2**16) -> None:
    """Checks that a set can be saved in a folder.

    It may be new, empty, or hold an avatar set, with other files beside it: a `set.json` that describes a set, of which
    at least one image is there.

    Args:
        folder: the folder.
        field: the setting that names it.
        room: bytes that the set will need.

    Raises:
        ConfigError: the folder is a file, cannot be written to, or holds files that are no avatar set.
    """
    reason = why_not_writable(folder, room) or _why_foreign(real_folder(folder))
    if reason is not None:
        raise ConfigError(reason, field=field, found=folder)


def _why_foreign(folder: Path) -> str | None:
    if not folder.exists():
        return None
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not _NEUTRAL.fullmatch(path.name))
    if not names:
        return None
    what = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    if not (folder / SETTINGS_FILE).exists():
        return f"holds files that are no avatar set ({what}); name a new or empty folder"
    try:
        index = read_index(folder)
    except DataError as e:
        return f"holds {what}, but {str(e).partition(': ')[2]}; name a new or empty folder"
    images = [entry["file"] for entry in index["images"]]
    if names != [SETTINGS_FILE] and not any(_is_file(folder / name) for name in images):
        return f"holds a {SETTINGS_FILE} whose images ({images[0]}, ...) are not there, and {what}; name another folder"
    return None


def _why_no_index(found: Any) -> str | None:
    if not isinstance(found, dict):
        return f"is {type(found).__name__}, must be an object"
    for key, kind in (
        ("model", str),
        ("seed", int),
        ("config", dict),
        ("versions", dict),
        ("references", list),
        ("images", list),
        ("anchor_expressions", list),
    ):
        if key not in found:
            return f"has no {key}"
        if not isinstance(found[key], kind):
            return f"{key} is {type(found[key]).__name__}, must be {kind.__name__}"
    entries = [*found["images"], *found["anchor_expressions"]]
    if not found["references"] or not found["images"]:
        return "references or images are empty"
    if not all(isinstance(entry, dict) for entry in entries):
        return "an image or anchor is no object"
    files = found.get(FILES, [])
    if not isinstance(files, list):
        return f"{FILES} is {type(files).__name__}, must be list"
    for name in (*found["references"], *(entry.get("file") for entry in found["images"]), *files):
        if not isinstance(name, str) or not _OWN_NAME.fullmatch(name):
            return f"{name!r} is no image file in the set's folder"
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file() or path.is_symlink()
    except OSError:
        return False


def _has_comment(path: Path) -> bool:
    try:
        return _COMMENT in path.read_bytes()
    except OSError:
        return False
