"""Values of options that name files or folders: the home folder for `~`, and no URLs."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from genaffect_jax.config.file_name import NAMES_FILES
from genaffect_jax.errors import ConfigError

Arguments = TypeVar("Arguments")
Name = TypeVar("Name", bound=str | Path)

# pathlib makes one slash of two. A single letter is a drive of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Of options that take images from a folder (`--data folder:DIR`).
_FOLDER = "folder:"


def options_left_empty(words: Sequence[str]) -> set[str]:
    """Names of the options without a value, as `--out "$UNSET"` leaves them: a path would become the current folder."""
    named = [word.removeprefix("--").partition("=") for word in words]
    return {
        name.replace("-", "_")
        for (name, _, value), word, following in zip(named, words, [*words[1:], "value"], strict=True)
        if word.startswith("--") and ((word.endswith("=") and not value) or (word == f"--{name}" and not following))
    }


def local_paths(arguments: Arguments, empty: Collection[str] = (), prefix: str = "") -> Arguments:
    """The arguments of a command with the home folder in place of a leading `~`, in all fields that name files.

    These are fields of type Path and of type `config.file_name.FileName`, alone or in tuples, also in nested
    configurations and where a preset set them. Shells replace `~` only where a word begins with it (not in
    `--out=~/set`).

    Args:
        arguments: a dataclass; a field `run` holds the preset, whose fields have options of their own names.
        empty: options that were given without a value.
        prefix: of the option names.

    Raises:
        ConfigError: a field holds a URL, which is never a file or folder of this machine, names the home folder of
            nobody, or is a path that was left empty.
    """
    hints, changes = get_type_hints(type(arguments), include_extras=True), {}
    for field in dataclasses.fields(arguments):  # type: ignore[arg-type]
        value, name = getattr(arguments, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            local: Any = local_paths(value, empty, "" if name == "run" else f"{name}.")
        else:
            names_files = NAMES_FILES in _metadata(hints[field.name])
            parts = value if isinstance(value, tuple) else (value,)
            if name in empty and isinstance(value, Path):
                raise ConfigError("is empty; name a file or folder (. is the current folder)", field=name)
            expanded = tuple(
                local_path(name, part) if isinstance(part, Path) or (names_files and isinstance(part, str)) else part
                for part in parts
            )
            local = expanded if isinstance(value, tuple) else expanded[0]
        if local != value:
            changes[field.name] = local
    return dataclasses.replace(arguments, **changes) if changes else arguments  # type: ignore[type-var]


def _metadata(hint: Any) -> set[Any]:
    found = set(getattr(hint, "__metadata__", ()))
    return found.union(*(_metadata(inner) for inner in get_args(hint)))


def local_path(name: str, value: Name) -> Name:
    """One value of an option that names a file or folder, as `local_paths` changes it.

    Raises:
        ConfigError: see `local_paths`.
    """
    source, text = "", str(value)
    if isinstance(value, str) and text.startswith(_FOLDER):
        source, text = _FOLDER, text.removeprefix(_FOLDER)
    if _URL.match(text):
        url = source + re.sub(":/+", ":///" if text.lower().startswith("file:") else "://", text, count=1)
        reason = "is a URL; name a file or folder of this machine, where the storage may be mounted"
        raise ConfigError(reason, field=name, found=url)
    expanded = os.path.expanduser(text) if text.startswith("~") else text
    if expanded.startswith("~") and not os.path.lexists(expanded.partition("/")[0]):
        home = text.partition("/")[0]
        raise ConfigError(f"there is no home folder {home}; write the whole path", field=name, found=value)
    return type(value)(source + expanded) if expanded != text else value
