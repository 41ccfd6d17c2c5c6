"""Arrays and text entries in one safetensors file with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy, for files that hold it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genaffect_jax.errors import DataError
from genaffect_jax.io.atomic import new_file

_CHECKSUM = "checksum"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], entries: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically; its header holds a checksum of all other content.

    Args:
        path: the file; its folder is created if missing, an earlier file is replaced.
        arrays: name to array, of any type of safetensors (bfloat16 included).
        entries: text entries of the header.

    Raises:
        ValueError: an entry is named `checksum`.
    """
    if _CHECKSUM in entries:
        raise ValueError(f"{path}: the header entry {_CHECKSUM!r} is computed here")
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with new_file(path) as temporary:
        save_file(stored, temporary, {**entries, _CHECKSUM: _digest(stored, entries)})


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and header entries of a file of `write_arrays`.

    Raises:
        DataError: the file is missing, not a file of `write_arrays`, or does not match its checksum.
    """
    try:
        with safe_open(path, framework="np") as file:
            entries = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file") from e
    except (SafetensorError, OSError) as e:
        raise DataError(f"{path}: damaged, or no safetensors file ({e})") from e
    if _CHECKSUM not in entries:
        raise DataError(f"{path}: the header has no checksum; the file was not written by this package")
    if entries.pop(_CHECKSUM) != _digest(arrays, entries):
        raise DataError(f"{path}: damaged: the content does not match the header's checksum")
    return arrays, entries


def _digest(arrays: Mapping[str, np.ndarray], entries: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(entries.items())).encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
