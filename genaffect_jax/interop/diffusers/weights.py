"""SD3 transformers and autoencoders read from and written to folders in the diffusers layout.

`load_transformer`, `save_transformer`, `load_autoencoder` and `save_autoencoder` handle modules; `read_` and `write_`
functions of the same names handle flat parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from genaffect_jax.config import AutoencoderConfig, DType, MMDiTConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers import configs as component_configs
from genaffect_jax.interop.diffusers import key_tables
from genaffect_jax.interop.diffusers.folders import CONFIG_FILE, component_folder, read_config
from genaffect_jax.interop.diffusers.parameters import MAX_SHARD_BYTES, read_parameters, write_parameters
from genaffect_jax.interop.diffusers.rules import Rule
from genaffect_jax.interop.diffusers.tensor_files import open_tensors
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional, Parameters, parameters_of
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.parallel.sharding import parameter_shardings

Config = TypeVar("Config", MMDiTConfig, AutoencoderConfig)
Module = TypeVar("Module", bound=nnx.Module)


@dataclass(frozen=True)
class Component(Generic[Config, Module]):
    """Everything that is specific to one kind of network."""

    class_name: str
    """Name of the class in diffusers."""
    folder: str
    """Name of its folder in a pipeline."""
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
    return _read(TRANSFORMER, folder, dtype, mesh, variant)


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
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes flat parameters, with more entries in the files' headers; otherwise as `save_transformer`."""
    _write(TRANSFORMER, config, parameters, folder, dtype, max_shard_bytes, metadata)


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
    return _read(AUTOENCODER, folder, dtype, mesh, variant)


def write_autoencoder(
    config: AutoencoderConfig,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    *,
    dtype: WeightDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes flat parameters, with more entries in the files' headers; otherwise as `save_autoencoder`."""
    _write(AUTOENCODER, config, parameters, folder, dtype, max_shard_bytes, metadata)


def _read(
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
    with open_tensors(folder, variant) as stored:
        rules, shapes = component.rules(config), _shapes(network)
        return config, read_parameters(rules, shapes, stored, folder, dtype, shardings)


def _read_config(component: Component[Config, Any], folder: Path) -> Config:
    folder = component_folder(folder, component.folder)
    try:
        return component.parse(read_config(folder, component.class_name))
    except ConfigError as e:
        raise WeightsError(f"{folder / CONFIG_FILE}: {e}") from e


def _write(
    component: Component[Config, Any],
    config: Config,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    dtype: WeightDType | None,
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None,
) -> None:
    try:
        values = component.unparse(config)
    except ConfigError as e:
        raise WeightsError(f"{folder}: not written: {e}") from e
    rules, shapes = component.rules(config), _shapes(component.network(config))
    write_parameters(folder, component.class_name, values, rules, shapes, parameters, dtype, max_shard_bytes, metadata)


def _shapes(network: Functional) -> dict[str, tuple[int, ...]]:
    return {name: tuple(s.shape) for name, s in network.shapes.items()}
