"""Flat parameters of any network, read from and written to the tensors of one component folder by a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.folders import new_component
from genaffect_jax.interop.diffusers.rules import Piece, Rule, Shape, match
from genaffect_jax.interop.diffusers.tensor_files import StoredTensors, write_tensors
from genaffect_jax.io.weight_file import WeightDType, misfits
from genaffect_jax.models.functional import Parameters

MAX_SHARD_BYTES = 2**30
"""One shard is held in memory while it is written."""
_ALIGNMENT = 64  # bytes; JAX's CPU devices use an aligned NumPy buffer without a copy


def read_parameters(
    rules: Sequence[Rule],
    shapes: Mapping[str, Shape],
    stored: StoredTensors,
    where: Path,
    dtype: WeightDType | None = None,
    shardings: Mapping[str, NamedSharding] | None = None,
) -> Parameters:
    """All parameters of a network, whose tensors are read one at a time.

    Args:
        rules: the conversion table.
        shapes: name to shape of all parameters.
        stored: the open files.
        where: the folder or file, for messages.
        dtype: type of the parameters, rounded to nearest; None for each parameter's stored type.
        shardings: where the parameters lie; None for the default device.

    Raises:
        WeightsError: keys or shapes are not exactly those of the network (all are named), the tensors of one parameter
            have different types, or a number is not finite in `dtype`.
    """
    pieces: dict[str, list[Piece]] = {}
    for piece in match(rules, shapes, stored.shapes, str(where)):
        pieces.setdefault(piece.parameter, []).append(piece)
    types = {name: dtype or _common_dtype(name, parts, stored, where) for name, parts in pieces.items()}
    parameters = {}
    for name, parts in pieces.items():
        buffer = _assemble(parts, stored, tuple(shapes[name]), types[name], where)
        if shardings is None:
            parameters[name] = jax.device_put(buffer)
        else:
            parameters[name] = jax.make_array_from_callback(buffer.shape, shardings[name], buffer.__getitem__)
        jax.block_until_ready(parameters[name])  # otherwise buffers accumulate that wait for their transfer
    return parameters


def write_parameters(
    folder: Path,
    class_name: str,
    config: dict[str, Any],
    rules: Sequence[Rule],
    shapes: Mapping[str, Shape],
    parameters: Mapping[str, jax.Array],
    dtype: WeightDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a component folder, atomically.

    Args:
        folder: an earlier folder of the same class is replaced.
        class_name: name of the component's class.
        config: the other entries of its `config.json`.
        rules: the conversion table.
        shapes: name to shape of all parameters of the network.
        parameters: the parameters.
        dtype: stored type, rounded to nearest; None for each parameter's own type.
        max_shard_bytes: largest file, in bytes; a larger network is sharded.
        metadata: more entries of the files' headers.

    Raises:
        WeightsError: the parameters are not those of the network (all differences are named), a number is not finite
            in the stored type, or `folder` holds other files.
    """
    problems = misfits({name: tuple(p.shape) for name, p in parameters.items()}, dict(shapes))
    problems += [f"{name} lies partly on other hosts" for name, p in parameters.items() if not p.is_fully_addressable]
    if problems:
        raise WeightsError(f"{folder}: not written: {class_name} with other parameters: {'; '.join(problems)}")
    pieces = {piece.key: piece for piece in match(rules, shapes, None, str(folder))}
    types = {key: jnp.dtype(dtype or parameters[piece.parameter].dtype) for key, piece in pieces.items()}
    sizes = {key: int(np.prod(piece.shape)) * types[key].itemsize for key, piece in pieces.items()}

    def tensor(key: str) -> np.ndarray:
        piece = pieces[key]
        parameter = parameters[piece.parameter]
        # A new array on the device, as an array keeps its host copy once it has one.
        single = jnp.copy(parameter) if piece.layer is None else parameter[piece.layer]
        with np.errstate(over="ignore"):  # reported below
            value = np.ascontiguousarray(piece.transform.to_theirs(np.asarray(single)), types[key])
        _require_finite(value, key, str(types[key]), folder)
        return value

    with new_component(folder, class_name, config) as temporary:
        write_tensors(temporary, sizes, tensor, max_shard_bytes, metadata)


def _common_dtype(name: str, pieces: Sequence[Piece], stored: StoredTensors, where: Path) -> WeightDType:
    types = {stored.dtypes[piece.key] for piece in pieces}
    if len(types) > 1:
        raise WeightsError(f"{where}: the tensors of {name} are stored as {sorted(types)}: say which dtype to load")
    return types.pop()


def _assemble(
    pieces: Sequence[Piece], stored: StoredTensors, shape: Shape, dtype: WeightDType, where: Path
) -> np.ndarray:
    """One parameter from its tensors, which are read one at a time."""
    buffer = _aligned(shape, jnp.dtype(dtype))
    for piece in pieces:
        target = buffer[...] if piece.layer is None else buffer[piece.layer]
        with np.errstate(over="ignore"):  # reported below
            target[...] = piece.transform.to_ours(stored.read(piece.key))
        if stored.dtypes[piece.key] != dtype:
            _require_finite(target, piece.key, dtype, where)
    return buffer


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _require_finite(value: np.ndarray, key: str, dtype: str, where: Path) -> None:
    if not np.isfinite(value).all():
        raise WeightsError(f"{where}: {key} holds numbers that are not finite as {dtype}")
