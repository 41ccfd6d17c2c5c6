"""SD3 transformers and autoencoders read from and written to folders in the diffusers layout.

`load_transformer`, `save_transformer`, `load_autoencoder` and `save_autoencoder` handle modules; `read_` and `write_`
functions of the same names handle flat parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from genaffect_jax.config import AutoencoderConfig, DType, MMDiTConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers import configs as component_configs
from genaffect_jax.interop.diffusers import key_tables
from genaffect_jax.interop.diffusers.folders import CONFIG_FILE, component_folder, new_component, read_config
from genaffect_jax.interop.diffusers.rules import Piece, Rule, match
from genaffect_jax.interop.diffusers.tensor_files import StoredTensors, open_tensors, write_tensors
from genaffect_jax.io.weight_file import WeightDType, misfits
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional, Parameters, parameters_of
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.parallel.sharding import parameter_shardings

MAX_SHARD_BYTES = 2**30
"""One shard is held in memory while it is written."""
_ALIGNMENT = 64  # bytes; JAX's CPU devices use an aligned NumPy buffer without a copy

Config = TypeVar("Config", bound=Hashable)
Module = TypeVar("Module", bound=nnx.Module)


@dataclass(frozen=True)
class Component(Generic[Config, Module]):
    """Everything that is specific to one kind of network."""

    class_name: str
    """Name of the class in diffusers."""
    folder: str
    """Name of its folder in a pipeline; empty if a pipeline may hold several."""
    parse: Callable[[Mapping[str, Any]], Config]
    """Entries of `config.json` to our configuration."""
    unparse: Callable[[Config], dict[str, Any]]
    """The inverse."""
    rules: Callable[[Config], tuple[Rule, ...]]
    """The conversion table."""
    make: Callable[[Config, DType, nnx.Rngs], Module]
    """Builds the module with a compute type."""

    def network(self, config: Config, compute_dtype: DType = "float32") -> Functional[Module]:
        """The module without arrays."""
        return _network(self, config, compute_dtype)


@lru_cache(maxsize=8)  # tracing a network takes about half a second, and reading, merging and writing all need it
def _network(component: Component[Config, Module], config: Config, compute_dtype: DType) -> Functional[Module]:
    return Functional(lambda rngs: component.make(config, compute_dtype, rngs))


TRANSFORMER = Component(
    "SD3Transformer2DModel",
    "transformer",
    component_configs.transformer_config,
    component_configs.transformer_values,
    key_tables.transformer_rules,
    lambda config, dtype, rngs: MMDiT(config, branches=False, rngs=rngs, dtype=jnp.dtype(dtype)),
)
AUTOENCODER = Component(
    "AutoencoderKL",
    "vae",
    component_configs.autoencoder_config,
    component_configs.autoencoder_values,
    key_tables.autoencoder_rules,
    lambda config, dtype, rngs: AutoencoderKL(config, rngs=rngs, dtype=jnp.dtype(dtype)),
)


def load_transformer(
    folder: Path,
    *,
    dtype: WeightDType | None = None,
    compute_dtype: DType = "float32",
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> MMDiT:
    """An SD3 or SD3.5 transformer from a diffusers folder.

    Args:
        folder: the transformer's folder, or a pipeline's folder with a `transformer/`.
        dtype: type of the parameters, rounded to nearest; None for each parameter's stored type.
        compute_dtype: type of the activations.
        mesh: devices of the parameters, sharded by `parallel.sharding`; None for the default device.
        variant: variant of the files (`fp16`).

    Raises:
        WeightsError: a file is missing or damaged, this package does not implement the configuration, or keys or shapes
            are not exactly those of the network (all are named).
    """
    config, parameters = read_transformer(folder, dtype=dtype, mesh=mesh, variant=variant)
    return TRANSFORMER.network(config, compute_dtype).merge(parameters)


def save_transformer(
    model: MMDiT, folder: Path, *, dtype: WeightDType | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes a transformer as a folder for diffusers' `from_pretrained`, atomically.

    Args:
        model: a transformer without condition branches and register tokens (diffusers has none).
        folder: the transformer's folder; an earlier one of the same class is replaced.
        dtype: stored type, rounded to nearest; None for each parameter's own type.
        max_shard_bytes: largest file, in bytes; a larger model is sharded.

    Raises:
        WeightsError: the model has parameters that diffusers does not have (all are named), a number is not finite in
            the stored type, or `folder` holds other files.
    """
    write_transformer(model.config, parameters_of(model), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)


def read_transformer(
    folder: Path, *, dtype: WeightDType | None = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[MMDiTConfig, Parameters]:
    """Configuration and flat parameters; arguments and errors as in `load_transformer`."""
    return read_component(TRANSFORMER, folder, dtype, mesh, variant)


def read_transformer_config(folder: Path) -> MMDiTConfig:
    """The configuration alone; errors as in `load_transformer`."""
    return _read_config(TRANSFORMER, folder)


def write_transformer(
    config: MMDiTConfig,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    *,
    dtype: WeightDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes flat parameters; arguments and errors as in `save_transformer`."""
    write_component(TRANSFORMER, config, parameters, folder, dtype, max_shard_bytes)


def load_autoencoder(
    folder: Path,
    *,
    dtype: WeightDType | None = None,
    compute_dtype: DType = "float32",
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> AutoencoderKL:
    """An SD3 autoencoder from its diffusers folder or a pipeline's with a `vae/`; otherwise as `load_transformer`."""
    config, parameters = read_autoencoder(folder, dtype=dtype, mesh=mesh, variant=variant)
    return AUTOENCODER.network(config, compute_dtype).merge(parameters)


def save_autoencoder(
    model: AutoencoderKL, folder: Path, *, dtype: WeightDType | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes an autoencoder as a folder for diffusers' `from_pretrained`; otherwise as `save_transformer`."""
    write_autoencoder(model.config, parameters_of(model), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)


def read_autoencoder(
    folder: Path, *, dtype: WeightDType | None = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[AutoencoderConfig, Parameters]:
    """Configuration and flat parameters; arguments and errors as in `load_autoencoder`."""
    return read_component(AUTOENCODER, folder, dtype, mesh, variant)


def write_autoencoder(
    config: AutoencoderConfig,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    *,
    dtype: WeightDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes flat parameters; arguments and errors as in `save_autoencoder`."""
    write_component(AUTOENCODER, config, parameters, folder, dtype, max_shard_bytes)


def read_component(
    component: Component[Config, Any],
    folder: Path,
    dtype: WeightDType | None,
    mesh: Mesh | None,
    variant: str | None,
) -> tuple[Config, Parameters]:
    config = _read_config(component, folder)
    folder = component_folder(folder, component.folder)
    network = component.network(config)
    shardings = None if mesh is None else parameter_shardings(network.logical_axes, network.shapes, mesh)
    shapes = {name: s.shape for name, s in network.shapes.items()}
    with open_tensors(folder, variant) as stored:
        pieces: dict[str, list[Piece]] = {}
        for piece in match(component.rules(config), shapes, stored.shapes, str(folder)):
            pieces.setdefault(piece.parameter, []).append(piece)
        types = {name: dtype or _common_dtype(name, parts, stored, folder) for name, parts in pieces.items()}
        parameters = {}
        for name, parts in pieces.items():
            buffer = _assemble(parts, stored, shapes[name], types[name], folder)
            if shardings is None:
                parameters[name] = jax.device_put(buffer)
            else:
                parameters[name] = jax.make_array_from_callback(shapes[name], shardings[name], buffer.__getitem__)
            jax.block_until_ready(parameters[name])  # otherwise buffers accumulate that wait for their transfer
    return config, parameters


def _read_config(component: Component[Config, Any], folder: Path) -> Config:
    folder = component_folder(folder, component.folder)
    try:
        return component.parse(read_config(folder, component.class_name))
    except ConfigError as e:
        raise WeightsError(f"{folder / CONFIG_FILE}: {e}") from e


def _common_dtype(name: str, pieces: Sequence[Piece], stored: StoredTensors, folder: Path) -> WeightDType:
    types = {stored.dtypes[piece.key] for piece in pieces}
    if len(types) > 1:
        raise WeightsError(f"{folder}: the tensors of {name} are stored as {sorted(types)}: say which dtype to load")
    return types.pop()


def _assemble(
    pieces: Sequence[Piece], stored: StoredTensors, shape: tuple[int, ...], dtype: WeightDType, folder: Path
) -> np.ndarray:
    """One parameter from its tensors, which are read one at a time."""
    buffer = _aligned(shape, jnp.dtype(dtype))
    for piece in pieces:
        target = buffer[...] if piece.layer is None else buffer[piece.layer]
        with np.errstate(over="ignore"):  # reported below
            target[...] = piece.transform.to_ours(stored.read(piece.key))
        if stored.dtypes[piece.key] != dtype:
            _require_finite(target, piece.key, dtype, folder)
    return buffer


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def write_component(
    component: Component[Config, Any],
    config: Config,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    dtype: WeightDType | None,
    max_shard_bytes: int,
) -> None:
    try:
        values = component.unparse(config)
    except ConfigError as e:
        raise WeightsError(f"{folder}: not written: {e}") from e
    shapes = {name: s.shape for name, s in component.network(config).shapes.items()}
    problems = misfits({name: tuple(p.shape) for name, p in parameters.items()}, shapes)
    problems += [f"{name} lies partly on other hosts" for name, p in parameters.items() if not p.is_fully_addressable]
    if problems:
        raise WeightsError(
            f"{folder}: not written: {component.class_name} with other parameters: {'; '.join(problems)}"
        )
    pieces = {piece.key: piece for piece in match(component.rules(config), shapes, None, str(folder))}
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

    with new_component(folder, component.class_name, values) as temporary:
        write_tensors(temporary, sizes, tensor, max_shard_bytes)


def _require_finite(value: np.ndarray, key: str, dtype: str, folder: Path) -> None:
    if not np.isfinite(value).all():
        raise WeightsError(f"{folder}: {key} holds numbers that are not finite as {dtype}")
