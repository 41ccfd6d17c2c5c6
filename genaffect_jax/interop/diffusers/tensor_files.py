"""Safetensors files, alone or as the shards of one component folder, read and written tensor by tensor.

File names in a folder are those of diffusers: `diffusion_pytorch_model.safetensors`, or several files and
`diffusion_pytorch_model.safetensors.index.json`, which maps tensors to files. Pickles are never read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.interop.diffusers.weight_files import DIFFUSERS_STEM, find_weights
from genaffect_jax.io.weight_file import DTYPES, WeightDType, unreadable

WRITTEN_NAMES = re.compile(
    rf"{DIFFUSERS_STEM}(-\d{{5}}-of-\d{{5}})?\.safetensors|{DIFFUSERS_STEM}\.safetensors\.index\.json"
)
"""File names that `write_tensors` makes."""


class Tensors(Protocol):
    """Tensors that are made or read one at a time.

    Attributes:
        shapes: key to shape.
        dtypes: key to type of numbers.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, WeightDType]

    def read(self, key: str) -> np.ndarray:
        """One tensor, as a new array of its type."""


class ArrayTensors:
    """Arrays in memory (see `Tensors`)."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """`arrays`: key to array."""
        self._arrays = arrays
        self.shapes = {key: array.shape for key, array in arrays.items()}
        self.dtypes: dict[str, WeightDType] = {key: array.dtype.name for key, array in arrays.items()}  # type: ignore[misc]

    def read(self, key: str) -> np.ndarray:
        """One array."""
        return np.asarray(self._arrays[key], order="C")


class StoredTensors:
    """Open files, of which only the headers have been read (see `Tensors`)."""

    def __init__(self, files: Mapping[str, Any]):
        """`files`: key to the open file that holds it."""
        self._files = files
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, WeightDType] = {}
        bad = []
        for key, file in files.items():
            header = file.get_slice(key)
            self.shapes[key] = tuple(header.get_shape())
            if header.get_dtype() in DTYPES:
                self.dtypes[key] = DTYPES[header.get_dtype()]
            else:
                bad.append(f"{key} has type {header.get_dtype()}")
        if bad:
            raise WeightsError(f"{listed(bad)}: must be {', '.join(DTYPES)}")

    def read(self, key: str) -> np.ndarray:
        """One tensor, in its stored type, as a new array."""
        return self._files[key].get_tensor(key)

    def read_rows(self, key: str, rows: slice) -> np.ndarray:
        """Some rows of a tensor; the others are not read."""
        return self._files[key].get_slice(key)[rows]


@contextmanager
def open_tensors(folder: Path, variant: str | None = None) -> Iterator[StoredTensors]:
    """Opens the files of a component folder.

    Args:
        folder: the folder.
        variant: reads `diffusion_pytorch_model.<variant>.safetensors` (or its index), for example `fp16`.

    Raises:
        WeightsError: as `weight_files.find_weights`; a file is missing or damaged; the index and the files disagree; or
            a type of numbers is unknown.
    """
    found = find_weights(folder, DIFFUSERS_STEM, variant)
    with ExitStack() as stack:
        if found.suffix == ".json":
            places = _open_shards(found, stack)
        else:
            file = stack.enter_context(open_file(found))
            places = dict.fromkeys(file.keys(), file)
        try:
            stored = StoredTensors(places)
        except WeightsError as e:
            raise WeightsError(f"{folder}: {e}") from e
        yield stored


def write_tensors(
    folder: Path, tensors: Tensors, max_shard_bytes: int, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors into a folder, as one file or as shards with an index.

    At most one shard is held in memory.

    Args:
        folder: an existing folder.
        tensors: what to write, in this order.
        max_shard_bytes: largest shard, in bytes; a larger tensor has a shard of its own.
        metadata: entries of every file's header beside `format`.
    """
    sizes = _sizes(tensors)
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for key, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(key)
        room -= size
    weight_map = {}
    for number, keys in enumerate(shards, start=1):
        name = (
            f"{DIFFUSERS_STEM}.safetensors"
            if len(shards) == 1
            else f"{DIFFUSERS_STEM}-{number:05}-of-{len(shards):05}.safetensors"
        )
        # The header's entry tells readers such as transformers that the axis order is PyTorch's.
        header = {**(metadata or {}), "format": "pt"}
        # safetensors 0.8 writes an array that is not in C order as its memory lies, under its shape, and says nothing.
        arrays = {key: np.asarray(tensors.read(key), order="C") for key in keys}
        save_file(arrays, folder / name, metadata=header)
        del arrays
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        weight_map.update(dict.fromkeys(keys, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / f"{DIFFUSERS_STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_file(path: Path, tensors: Tensors, metadata: Mapping[str, str], hash_entry: str | None = None) -> None:
    """Writes tensors as one safetensors file; only one of them is held in memory.

    Args:
        path: the file; see `io.atomic` for a write that appears whole.
        tensors: what to write.
        metadata: entries of the header beside `format`.
        hash_entry: name of an entry that receives the SHA-256 of all bytes after the header, with 0x in front.
    """
    sizes = _sizes(tensors)
    # The widest types first, so that every tensor is aligned.
    keys = sorted(sizes, key=lambda key: -jnp.dtype(tensors.dtypes[key]).itemsize)
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries, start = {}, 0
    for key in keys:
        place = [start, start + sizes[key]]
        entries[key] = {"dtype": names[tensors.dtypes[key]], "shape": tensors.shapes[key], "data_offsets": place}
        start += sizes[key]

    def header(digest: str) -> bytes:
        hashes = {} if hash_entry is None else {hash_entry: f"0x{digest}"}
        text = json.dumps({"__metadata__": {"format": "pt", **metadata, **hashes}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(header(digest.hexdigest()))  # every digest has the same length
        for key in keys:
            content = np.ascontiguousarray(tensors.read(key)).reshape(-1).view(np.uint8).data
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(header(digest.hexdigest()))


def open_file(path: Path) -> Any:
    """An open safetensors file, of which only the header has been read.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        # Not memory-mapped, as the pages that have been read would count as this process's memory.
        return safe_open(path, framework="numpy", backend="pread")
    except (SafetensorError, OSError) as e:
        raise unreadable(path, e) from e


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise WeightsError(f"{path}: no such file") from e
    except OSError as e:  # no permission, a folder or a circle of links
        raise WeightsError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: not JSON ({e})") from e
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: must hold a JSON object, holds a {type(values).__name__}")
    return values


def _sizes(tensors: Tensors) -> dict[str, int]:
    """Key to size in bytes."""
    return {key: math.prod(shape) * jnp.dtype(tensors.dtypes[key]).itemsize for key, shape in tensors.shapes.items()}


def _open_shards(index: Path, stack: ExitStack) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index}: has no table 'weight_map' of keys to file names")
    names = sorted(set(weight_map.values()))
    problems = [f"{name!r} is no plain file name" for name in names if Path(name).name != name]
    problems += [f"shard {name} is missing" for name in names if not (index.parent / name).is_file()]
    if problems:
        raise WeightsError(f"{index}: {listed(problems)}")
    files = {name: stack.enter_context(open_file(index.parent / name)) for name in names}
    held = {name: set(file.keys()) for name, file in files.items()}
    problems = [f"{key} is not in {name}" for key, name in weight_map.items() if key not in held[name]]
    problems += [
        f"{key} in {name} is not listed"
        for name, keys in held.items()
        for key in sorted(keys)
        if weight_map.get(key) != name
    ]
    if problems:
        raise WeightsError(f"{index}: does not fit its files: {listed(problems)}")
    return {key: files[name] for key, name in weight_map.items()}
