"""The safetensors files of one component folder, single or sharded, read and written tensor by tensor.

File names are those of diffusers: `diffusion_pytorch_model.safetensors`, or several files and
`diffusion_pytorch_model.safetensors.index.json`, which maps tensors to files. Pickles are never read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genaffect_jax.errors import WeightsError
from genaffect_jax.io.weight_file import DTYPES, WeightDType

STEM = "diffusion_pytorch_model"
WRITTEN_NAMES = re.compile(rf"{STEM}(-\d{{5}}-of-\d{{5}})?\.safetensors|{STEM}\.safetensors\.index\.json")
"""File names that `write_tensors` makes."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class StoredTensors:
    """Open files, of which only the headers have been read; `read` reads one tensor.

    Attributes:
        shapes: key to shape.
        dtypes: key to type of numbers.
    """

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
            raise WeightsError(f"{'; '.join(bad)}: must be {', '.join(DTYPES)}")

    def read(self, key: str) -> np.ndarray:
        """One tensor, in its stored type, as a new array."""
        return self._files[key].get_tensor(key)


@contextmanager
def open_tensors(folder: Path, variant: str | None = None) -> Iterator[StoredTensors]:
    """Opens the files of a component folder.

    Args:
        folder: the folder.
        variant: reads `diffusion_pytorch_model.<variant>.safetensors` (or its index), for example `fp16`.

    Raises:
        WeightsError: there is no safetensors file, or both a single one and an index; a file is missing or damaged; the
            index and the files disagree; or a type of numbers is unknown.
    """
    suffix = "" if variant is None else f".{variant}"
    whole = folder / f"{STEM}{suffix}.safetensors"
    index = folder / f"{STEM}.safetensors.index{suffix}.json"
    if whole.is_file() and index.is_file():
        raise WeightsError(f"{folder}: has both {whole.name} and {index.name}; which one counts is not clear")
    if not whole.is_file() and not index.is_file():
        raise WeightsError(_nothing_found(folder, whole, index))
    with ExitStack() as stack:
        if whole.is_file():
            file = stack.enter_context(_open(whole))
            places = dict.fromkeys(file.keys(), file)
        else:
            places = _open_shards(index, stack)
        try:
            stored = StoredTensors(places)
        except WeightsError as e:
            raise WeightsError(f"{folder}: {e}") from e
        yield stored


def write_tensors(
    folder: Path, sizes: Mapping[str, int], make: Callable[[str], np.ndarray], max_shard_bytes: int
) -> None:
    """Writes tensors into a folder, as one file or as shards with an index.

    At most one shard is held in memory.

    Args:
        folder: an existing folder.
        sizes: key to size in bytes of all tensors, in the order of the file.
        make: computes the tensor of a key.
        max_shard_bytes: largest shard, in bytes; a larger tensor has a shard of its own.
    """
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
        name = f"{STEM}.safetensors" if len(shards) == 1 else f"{STEM}-{number:05}-of-{len(shards):05}.safetensors"
        # The header's entry tells readers such as transformers that the axis order is PyTorch's.
        save_file({key: make(key) for key in keys}, folder / name, metadata={"format": "pt"})
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        weight_map.update(dict.fromkeys(keys, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise WeightsError(f"{path}: no such file") from e
    except ValueError as e:
        raise WeightsError(f"{path}: not JSON ({e})") from e
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: must hold a JSON object, holds a {type(values).__name__}")
    return values


def _open_shards(index: Path, stack: ExitStack) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index}: has no table 'weight_map' of keys to file names")
    names = sorted(set(weight_map.values()))
    problems = [f"{name!r} is no plain file name" for name in names if Path(name).name != name]
    problems += [f"shard {name} is missing" for name in names if not (index.parent / name).is_file()]
    if problems:
        raise WeightsError(f"{index}: {'; '.join(problems)}")
    files = {name: stack.enter_context(_open(index.parent / name)) for name in names}
    held = {name: set(file.keys()) for name, file in files.items()}
    problems = [f"{key} is not in {name}" for key, name in weight_map.items() if key not in held[name]]
    problems += [
        f"{key} in {name} is not listed"
        for name, keys in held.items()
        for key in sorted(keys)
        if weight_map.get(key) != name
    ]
    if problems:
        raise WeightsError(f"{index}: does not fit its files: {'; '.join(problems)}")
    return {key: files[name] for key, name in weight_map.items()}


def _open(path: Path) -> Any:
    try:
        # Not memory-mapped, as the pages that have been read would count as this process's memory.
        return safe_open(path, framework="numpy", backend="pread")
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"{path}: damaged, or no safetensors file ({e})") from e


def _nothing_found(folder: Path, whole: Path, index: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    found = sorted(p.name for p in folder.iterdir())
    message = f"{folder}: has neither {whole.name} nor {index.name} (has {', '.join(found) or 'nothing'})"
    if any(name.endswith(_PICKLES) for name in found):
        message += "; pickle files are not read, as they can run any code: convert them to safetensors"
    return message
