"""Configurations as JSON: one file rebuilds a model without any other code."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from genaffect_jax.errors import ConfigError, require

T = TypeVar("T")
ADDED_LATER = {"added_later": True}
"""Field metadata: files written before the field existed lack it; its default describes them."""


def to_json(config: object) -> str:
    """The configuration as indented JSON; paths become strings, tuples become lists."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_json: {type(config).__name__} is no configuration")
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(cls: type[T], text: str) -> T:
    """Rebuilds the configuration of class `cls` that `to_json` wrote.

    Fields with the metadata `ADDED_LATER` may be missing and get their defaults. Derived fields (`init=False`) are
    compared with the values that the other fields give them.

    Raises:
        ConfigError: unknown or missing keys (all are named), or a value that is not allowed.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as e:  # also a number of thousands of digits, and lists in lists in lists
        raise ConfigError(f"configuration: not JSON ({e})") from e
    return _build(cls, values, cls.__name__)


def with_changes(config: T, changes: Mapping[str, Any]) -> T:
    """The configuration with single fields changed from Python, whose values are checked like those of a file.

    NumPy's numbers count as numbers, its arrays and tuples as lists, and a single number as a list of one where a list
    is expected.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type or not allowed.
    """
    if not changes:
        return config
    hints = typing.get_type_hints(type(config))
    unknown = sorted(set(changes) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no setting; the settings are those of {type(config).__name__}{hint}", field=unknown[0])
    checked = {}
    for name, value in changes.items():
        plain = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        if typing.get_origin(hints[name]) is tuple:
            plain = list(plain) if isinstance(plain, (tuple, list)) else [plain]
        checked[name] = _build(hints[name], plain, name)
    return dataclasses.replace(config, **checked)  # type: ignore[type-var]


def _build(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r}: must be a table of {kind.__name__} fields")
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        optional = {f.name for f in dataclasses.fields(kind) if f.metadata.get("added_later")}
        unknown, missing = sorted(set(value) - names), sorted(names - optional - set(value))
        if unknown or missing:
            raise ConfigError(f"{name}: unknown fields {unknown}, missing fields {missing} (has {sorted(names)})")
        built = {key: _build(hints[key], v, f"{name}.{key}") for key, v in value.items()}
        derived = {f.name: built.pop(f.name) for f in dataclasses.fields(kind) if not f.init}
        config = kind(**built)
        for key, stored in derived.items():
            needed = getattr(config, key)
            require(stored == needed, f"{name}.{key}", stored, f"must be {needed}, as the other fields decide it")
        return config
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value, name)
    if origin is Literal:
        require(value in arguments, name, value, f"must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{name}={value!r}: must be a list")
        return tuple(_build(arguments[0], v, name) for v in value)
    if kind is Path:
        require(isinstance(value, (str, Path)), name, repr(value), "must be a path")
        return Path(value)
    number = int | float if kind is float else kind
    require(
        isinstance(value, number) and not (kind is not bool and isinstance(value, bool)),
        name,
        repr(value),
        f"must be of type {kind.__name__}",
    )
    try:
        return kind(value)
    except OverflowError as e:
        raise ConfigError("must be finite", field=name, found=f"{str(value)[:20]}...") from e
