"""Weight files: the flat parameters of one network and its configuration in one safetensors file.

Names in the file are those of `models.functional`, such as `encoder.mid_block.resnets.0.conv1.kernel`; the header's
`config` entry is the JSON of the network's configuration. A file may store kernels in 8 bits (`io.eight_bit`): the
scales of `NAME` are `NAME:scale`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save

from genaffect_jax.config import from_json, to_json
from genaffect_jax.errors import ConfigError, WeightsError, listed
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.eight_bit import SCALE, dequantise, is_quantised, quantise
from genaffect_jax.io.package_files import PACKAGE_PREFIX, assets

WeightDType = Literal["float32", "bfloat16", "float16"]
StoredDType = WeightDType | Literal["int8"]
DTYPES: dict[str, WeightDType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of numbers that weights may have, by their names in safetensors files."""
_CONFIG = "config"
_PICKLE = "it begins as a pickle does, which can run any code and is not read: convert it to safetensors"
_OTHER_FILES = {
    b"PK\x03\x04": _PICKLE,  # torch.save writes a zip file of a pickle and numbers
    b"\x80": _PICKLE,
    b"version https://git-lfs": "it is a Git LFS pointer, in whose place the download should put the file",
    b"<": "it begins as a web page does, so the download went wrong",
}
"""What other files that are taken for weights begin with."""
C = TypeVar("C")

_FLOATS = ("F64", "F32", "F16", "BF16")  # the types in which parameters may be stored, by safetensors' names
_INT8 = "I8"


class Shaped(Protocol):
    """A network, seen as names, shapes and types of its parameters (`models.functional.Functional`)."""

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]: ...


def save_weights(
    parameters: Mapping[str, jax.Array],
    path: Path,
    dtype: StoredDType,
    config: object,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes parameters to a safetensors file, atomically.

    Args:
        parameters: flat names to floating-point arrays.
        path: the file; its folder is created if missing, an earlier file is replaced.
        dtype: stored type, rounded to nearest; `int8`: kernels as `io.eight_bit` says, the rest in float32.
        config: configuration dataclass of the network, written into the header.
        metadata: more header entries.

    Raises:
        WeightsError: a parameter holds a number that is not finite in `dtype`, or `metadata` has a `config` entry.
    """
    metadata = dict(metadata or {})
    if _CONFIG in metadata:
        raise WeightsError(f"{path}: the header entry {_CONFIG!r} is written from the configuration")
    stored = _as_stored(parameters, dtype)
    bad = [name for name, value in stored.items() if not bool(jnp.isfinite(value).all())]
    if bad:
        raise WeightsError(
            f"{path}: not written: numbers that are not finite as {dtype} in {listed(bad, separator=', ')}"
        )
    write_atomically(path, _in_order(save(stored, {**metadata, _CONFIG: to_json(config)})), durable=True)


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header's texts sorted: safetensors writes them in another order each time, so that
    equal weights would have different checksums."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[start:]


def _as_stored(parameters: Mapping[str, jax.Array], dtype: StoredDType) -> dict[str, jax.Array]:
    if dtype != "int8":
        return {name: jnp.asarray(np.asarray(value)).astype(dtype) for name, value in sorted(parameters.items())}
    stored: dict[str, jax.Array] = {}
    for name, value in sorted(parameters.items()):
        if is_quantised(value.shape) and bool(jnp.isfinite(value).all()):
            integers, scale = quantise(np.asarray(value))
            stored |= {name: jnp.asarray(integers), f"{name}{SCALE}": jnp.asarray(scale)}
        else:
            stored[name] = jnp.asarray(np.asarray(value)).astype("float32")
    return stored


def load_weights(network: Shaped, path: Path, config: object | None = None) -> dict[str, jax.Array]:
    """The parameters of a network, in the network's own types, from a file of `save_weights`, on the default device.

    Args and errors: see `read_weights`.
    """
    return {name: jnp.asarray(value) for name, value in read_weights(network, path, config).items()}


def read_weights(network: Shaped, path: Path, config: object | None = None) -> dict[str, np.ndarray]:
    """The parameters of a network, in the network's own types, from a file of `save_weights`, in the host's memory.

    Args:
        network: decides names, shapes and types.
        path: the file.
        config: configuration of the network; if given, it must equal the one in the file.

    Raises:
        WeightsError: the file is missing or damaged, its keys, shapes or configuration differ (some are named), its
            numbers are no floating-point ones, or some are not finite.
    """
    if config is not None:
        stored = read_config(path, type(config))
        if stored != config:
            raise WeightsError(f"{path}: the weights are of {stored}, not of {config}")
    with _open(path) as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        types = {name: piece.get_dtype() for name, piece in found.items()}
        integers = {name for name, kind in types.items() if kind == _INT8}
        expected = {name: tuple(s.shape) for name, s in network.shapes.items()}
        scales = {f"{name}{SCALE}": expected[name][-1:] for name in integers & expected.keys()}
        problems = misfits({name: tuple(piece.get_shape()) for name, piece in found.items()}, {**expected, **scales})
        if problems:
            raise WeightsError(f"{path}: does not fit the network: " + listed(problems))
        if wrong := [
            f"{name} ({types[name]})" for name in sorted(types.keys() - integers) if types[name] not in _FLOATS
        ]:
            raise WeightsError(f"{path}: {listed(wrong, separator=', ')}: must be one of {', '.join(_FLOATS)}")

        def read(name: str) -> np.ndarray:
            value = np.asarray(file.get_tensor(name))
            return dequantise(value, np.asarray(file.get_tensor(f"{name}{SCALE}"))) if name in integers else value

        # NumPy throughout: JAX would compile a program for every shape, which takes longer than reading the file.
        loaded = {name: read(name).astype(s.dtype) for name, s in network.shapes.items()}
    if bad := [name for name, value in loaded.items() if not np.isfinite(value).all()]:
        raise WeightsError(f"{path}: numbers that are not finite in {listed(bad, separator=', ')}")
    return loaded


def misfits(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line for every name that is missing, unknown or of another shape."""
    problems = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unknown {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {found[name]}, must be {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    return problems


def read_config(path: Path, kind: type[C]) -> C:
    """The configuration of class `kind` in a weight file's header.

    Raises:
        WeightsError: the file is missing or damaged, or its header holds no valid configuration of this class.
    """
    header = read_metadata(path)
    if _CONFIG not in header:
        raise WeightsError(f"{path}: the header has no entry {_CONFIG!r} (has {sorted(header)})")
    try:
        return from_json(kind, header[_CONFIG])
    except ConfigError as e:
        raise WeightsError(f"{path}: header entry {_CONFIG!r}: {e}") from e


def read_metadata(path: Path) -> dict[str, str]:
    """The header's text entries.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    with _open(path) as file:
        return dict(file.metadata() or {})


def is_weight_file(path: Path) -> bool:
    """Whether a safetensors file is one of `save_weights`: its header has a configuration.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    return _CONFIG in read_metadata(path)


def stored_dtype(path: Path) -> WeightDType:
    """The smallest floating-point type that holds the parameters of a file of `save_weights` as they are: the type in
    which they are stored, float32 for 8 bits.

    Raises:
        WeightsError: the file is missing or damaged, or does not hold one allowed type.
    """
    with _open(path) as file:
        found = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    if found <= {_INT8, "F32"} and found:
        return "float32"
    if len(found) != 1 or not found <= DTYPES.keys():
        raise WeightsError(f"{path}: the parameters have types {sorted(found)}, must all have one of {sorted(DTYPES)}")
    return DTYPES[found.pop()]


def resolve_weights(source: str) -> Path:
    """The file of a weight source: `package:NAME` (weights in this package) or a path.

    Raises:
        WeightsError: there is no such file; the message lists the weights in the package.
    """
    if not source.startswith(PACKAGE_PREFIX):
        path = Path(source)
        if not path.is_file():
            raise WeightsError(f"weights {source!r}: no such file (weights inside the package: {PACKAGE_PREFIX}NAME)")
        return path
    folder = assets()
    path = folder / f"{source.removeprefix(PACKAGE_PREFIX)}.safetensors"
    if path.parent != folder or not path.is_file():
        names = sorted(f"{PACKAGE_PREFIX}{p.stem}" for p in folder.glob("*.safetensors"))
        raise WeightsError(f"weights {source!r}: not in this package (has {', '.join(names) or 'none'})")
    return path


def checksum(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    Raises:
        WeightsError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as e:
        raise WeightsError(f"{path}: no such file") from e
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read: {e.strerror or e}") from e


def unreadable(path: Path, error: Exception) -> WeightsError:
    """The error about a file that safetensors cannot open; says what the file is where its first bytes show it.

    Args:
        path: the file.
        error: what safetensors raised.
    """
    if path.is_dir():
        return WeightsError(f"{path}: is a folder, must be a safetensors file")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        return WeightsError(f"{path}: no such file")
    except OSError as e:  # no permission, or a circle of links
        return WeightsError(f"{path}: cannot be read: {e.strerror or e}")
    torn = start[8:9] == b"{"  # the length of a header, which may be any bytes, and the header
    hint = next((f"; {hint}" for mark, hint in _OTHER_FILES.items() if start.startswith(mark) and not torn), "")
    return WeightsError(f"{path}: damaged, or no safetensors file ({error}){hint}")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="flax")
    except (SafetensorError, OSError) as e:
        raise unreadable(path, e) from e
