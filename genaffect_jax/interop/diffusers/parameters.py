"""Flat parameters of any network, made of the tensors of a file and turned into them, by a conversion table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.interop.diffusers.rules import Piece, Rule, Shape, match
from genaffect_jax.interop.diffusers.tensor_files import Tensors
from genaffect_jax.io.weight_file import WeightDType, misfits
from genaffect_jax.models.functional import Parameters

_ALIGNMENT = 64  # bytes; JAX's CPU devices use an aligned NumPy buffer without a copy


def read_parameters(
    rules: Sequence[Rule],
    shapes: Mapping[str, Shape],
    stored: Tensors,
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
        WeightsError: keys or shapes are not exactly those of the network (some are named), the tensors of one parameter
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


class ParameterTensors:
    """The tensors that parameters become in a file, made one at a time (see `tensor_files.Tensors`)."""

    def __init__(
        self,
        class_name: str,
        rules: Sequence[Rule],
        shapes: Mapping[str, Shape],
        parameters: Mapping[str, jax.Array],
        dtype: WeightDType | None,
        where: Path,
    ):
        """Args:
            class_name: name of the network's class, for messages.
            rules: the conversion table.
            shapes: name to shape of all parameters of the network.
            parameters: the parameters, all of them and no others.
            dtype: type of the tensors, rounded to nearest; None for each parameter's own type.
            where: the file or folder to write, for messages.

        Raises:
            WeightsError: parameters are missing, unknown, of another shape or partly on other hosts (some are named).
        """
        problems = misfits({name: tuple(p.shape) for name, p in parameters.items()}, dict(shapes))
        problems += [
            f"{name} lies partly on other hosts" for name, p in parameters.items() if not p.is_fully_addressable
        ]
        if problems:
            raise WeightsError(f"{where}: not written: {class_name} with other parameters: {listed(problems)}")
        self._pieces = {piece.key: piece for piece in match(rules, shapes, None, str(where))}
        self._parameters, self._where = parameters, where
        self.shapes = {key: piece.shape for key, piece in self._pieces.items()}
        self.dtypes: dict[str, WeightDType] = {
            key: dtype or str(parameters[piece.parameter].dtype)  # type: ignore[misc]
            for key, piece in self._pieces.items()
        }

    def read(self, key: str) -> np.ndarray:
        """One tensor.

        Raises:
            WeightsError: it holds a number that is not finite in its type.
        """
        piece = self._pieces[key]
        parameter = self._parameters[piece.parameter]
        # A new array on the device, as an array keeps its host copy once it has one.
        single = jnp.copy(parameter) if piece.layer is None else parameter[piece.layer]
        with np.errstate(over="ignore"):  # reported below
            value = np.ascontiguousarray(piece.transform.to_theirs(np.asarray(single)), jnp.dtype(self.dtypes[key]))
        _require_finite(value, key, self.dtypes[key], self._where)
        return value


def _common_dtype(name: str, pieces: Sequence[Piece], stored: Tensors, where: Path) -> WeightDType:
    types = {stored.dtypes[piece.key] for piece in pieces}
    if len(types) > 1:
        raise WeightsError(f"{where}: the tensors of {name} are stored as {sorted(types)}: say which dtype to load")
    return types.pop()


def _assemble(pieces: Sequence[Piece], stored: Tensors, shape: Shape, dtype: WeightDType, where: Path) -> np.ndarray:
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
