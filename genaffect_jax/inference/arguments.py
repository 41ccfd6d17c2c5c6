"""What a caller of Python gives beside identity and expressions, checked before anything is read or written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from genaffect_jax.data.face_encoders import ExpressionEncoder
from genaffect_jax.data.photos.reader import Align
from genaffect_jax.errors import ConfigError, shown

Animation = Literal["gif", "webp"]


def checked_path(value: Any, field: str) -> Path:
    """A file or folder.

    Raises:
        ConfigError: it is no path.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError("must be the path of a file or folder, a str or Path", field=field, found=shown(value))
    return Path(path)


def checked_checkpoint(value: Any) -> str:
    """The name of a checkpoint; a step may also be a number.

    Raises:
        ConfigError: it is neither.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole and not isinstance(value, str):
        raise ConfigError("must be latest, best, or a step", field="checkpoint", found=shown(value))
    return str(value)


def checked_loras(value: Any) -> list[tuple[Path, float]]:
    """LoRA files and their weights.

    Raises:
        ConfigError: it is no list of pairs of a file and a number.
    """
    pairs = list(value) if isinstance(value, (list, tuple)) else None
    if pairs is None or not all(isinstance(p, (list, tuple)) and len(p) == 2 and _is_number(p[1]) for p in pairs):
        raise ConfigError("must be a list of pairs: (file, weight)", field="loras", found=shown(value))
    return [(checked_path(path, "loras"), float(weight)) for path, weight in pairs]


def checked_align(value: Any) -> Align | None:
    """Treatment of image files, or None.

    Raises:
        ConfigError: it is none of them.
    """
    _require_choice(value, get_args(Align), "align")
    return value


def checked_face_index(value: Any) -> int:
    """Number of a face.

    Raises:
        ConfigError: it is no whole number of at least 0.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
        raise ConfigError("must be a whole number, at least 0", field="face_index", found=shown(value))
    return int(value)


def checked_encoder(value: Any) -> str | ExpressionEncoder | None:
    """An expression encoder, or None.

    Raises:
        ConfigError: it is neither the name or file of one, nor one.
    """
    if isinstance(value, os.PathLike):
        return str(checked_path(value, "expression_encoder"))
    if value is not None and not isinstance(value, (str, ExpressionEncoder)):
        reason = "must be package:NAME, a file, or an expression encoder (data.face_encoders.ExpressionEncoder)"
        raise ConfigError(reason, field="expression_encoder", found=shown(value))
    return value


def checked_devices(value: Any) -> list[jax.Device]:
    """The devices to sample on; None stands for all of this process.

    Raises:
        ConfigError: it is no list of devices, or an empty one.
    """
    devices = jax.local_devices() if value is None else value
    if not isinstance(devices, Sequence) or not devices or not all(isinstance(d, jax.Device) for d in devices):
        raise ConfigError("must be a list of jax.Device, of at least one", field="devices", found=shown(value))
    return list(devices)


def checked_animation(value: Any) -> Animation | None:
    """File type of an animation, or None.

    Raises:
        ConfigError: it is none of them.
    """
    _require_choice(value, get_args(Animation), "animation")
    return value


def _require_choice(value: Any, choices: Sequence[str], field: str) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"must be {' or '.join(choices)}", field=field, found=shown(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
