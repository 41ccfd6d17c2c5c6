"""SD3 transformers and autoencoders read from and written to folders in the diffusers layout.

`load_transformer`, `save_transformer`, `load_autoencoder` and `save_autoencoder` handle modules; `read_` and `write_`
functions of the same names handle flat parameters. Reading accepts a one-file checkpoint too (`single_file`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from genaffect_jax.config import AutoencoderConfig, DType, MMDiTConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.components import AUTOENCODER, TRANSFORMER, Component, Config
from genaffect_jax.interop.diffusers.folders import CONFIG_FILE, component_folder, new_component, read_config
from genaffect_jax.interop.diffusers.parameters import read_parameters
from genaffect_jax.interop.diffusers.single_file import OriginalTensors, open_single_file
from genaffect_jax.interop.diffusers.tensor_files import StoredTensors, open_tensors, write_tensors
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Parameters, parameters_of
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.parallel.sharding import parameter_shardings

MAX_SHARD_BYTES = 2**30
"""One shard is held in memory while it is written."""


def load_transformer(
    source: Path,
    *,
    dtype: WeightDType | None = None,
    compute_dtype: DType = "float32",
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> MMDiT:
    """An SD3 or SD3.5 transformer from a diffusers folder or a one-file checkpoint.

    Args:
        source: the transformer's folder, a pipeline's folder with a `transformer/`, or a safetensors file in the
            original layout; the configuration of a file is inferred (see `inferred_configs`).
        dtype: type of the parameters, rounded to nearest; None for each parameter's stored type.
        compute_dtype: type of the activations.
        mesh: devices of the parameters, sharded by `parallel.sharding`; None for the default device.
        variant: variant of a folder's files (`fp16`).

    Raises:
        WeightsError: a file is missing or damaged, this package does not implement the configuration, or keys or shapes
            are not exactly those of the network (some are named).
    """
    config, parameters = read_transformer(source, dtype=dtype, mesh=mesh, variant=variant)
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
        WeightsError: the model has parameters that diffusers does not have (some are named), a number is not finite in
            the stored type, or `folder` holds other files.
    """
    write_transformer(model.config, parameters_of(model), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)


def read_transformer(
    source: Path, *, dtype: WeightDType | None = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[MMDiTConfig, Parameters]:
    """Configuration and flat parameters; arguments and errors as in `load_transformer`."""
    return read_component(TRANSFORMER, source, dtype, mesh, variant)


def read_transformer_config(source: Path) -> MMDiTConfig:
    """The configuration alone; errors as in `load_transformer`."""
    return _read_config(TRANSFORMER, source)


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
    write_component(TRANSFORMER, config, parameters, folder, dtype, max_shard_bytes, metadata)


def load_autoencoder(
    source: Path,
    *,
    dtype: WeightDType | None = None,
    compute_dtype: DType = "float32",
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> AutoencoderKL:
    """An SD3 autoencoder from its folder, a pipeline's with a `vae/`, or a file; otherwise as `load_transformer`."""
    config, parameters = read_autoencoder(source, dtype=dtype, mesh=mesh, variant=variant)
    return AUTOENCODER.network(config, compute_dtype).merge(parameters)


def save_autoencoder(
    model: AutoencoderKL, folder: Path, *, dtype: WeightDType | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes an autoencoder as a folder for diffusers' `from_pretrained`; otherwise as `save_transformer`."""
    write_autoencoder(model.config, parameters_of(model), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)


def read_autoencoder(
    source: Path, *, dtype: WeightDType | None = None, mesh: Mesh | None = None, variant: str | None = None
) -> tuple[AutoencoderConfig, Parameters]:
    """Configuration and flat parameters; arguments and errors as in `load_autoencoder`."""
    return read_component(AUTOENCODER, source, dtype, mesh, variant)


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
    write_component(AUTOENCODER, config, parameters, folder, dtype, max_shard_bytes, metadata)


def read_component(
    component: Component[Config, Any],
    source: Path,
    dtype: WeightDType | None = None,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> tuple[Config, Parameters]:
    """Configuration and flat parameters of any kind of network; arguments and errors as in `load_transformer`."""
    with _opened(component, source, variant) as (config, stored):
        network = component.network(config)
        shardings = None if mesh is None else parameter_shardings(network.logical_axes, network.shapes, mesh)
        return config, read_parameters(
            component.rules(config), component.shapes(config), stored, source, dtype, shardings
        )


@contextmanager
def _opened(
    component: Component[Config, Any], source: Path, variant: str | None
) -> Iterator[tuple[Config, StoredTensors | OriginalTensors]]:
    """The configuration and the tensors, by their keys in diffusers, of a folder or a one-file checkpoint."""
    if component.original is not None and _is_file(source):
        _require_no_variant(source, variant)
        with open_single_file(source, component) as (config, tensors):
            yield config, tensors
        return
    config = _read_config(component, source)
    folder = component_folder(source, component.folder)
    with open_tensors(folder, variant) as stored:
        layout = component.original
        if layout is not None and any(key.startswith(layout.prefix) for key in stored.shapes):
            raise WeightsError(
                f"{folder}: its keys begin with {layout.prefix}, as those of a one-file checkpoint do: name the "
                ".safetensors file itself in place of the folder"
            )
        yield config, stored


def _read_config(component: Component[Config, Any], source: Path) -> Config:
    if component.original is not None and _is_file(source):
        with open_single_file(source, component) as (config, _):
            return config
    folder = component_folder(source, component.folder)
    try:
        return component.parse(read_config(folder, component.class_name))
    except ConfigError as e:
        raise WeightsError(f"{folder / CONFIG_FILE}: {e}") from e


def _is_file(source: Path) -> bool:
    """Whether a file is meant, there or not."""
    return source.is_file() or (source.suffix == ".safetensors" and not source.is_dir())


def _require_no_variant(source: Path, variant: str | None) -> None:
    if variant is not None:
        raise WeightsError(
            f"{source}: a file has no variants, name a diffusers folder or no variant", field="variant", found=variant
        )


def write_component(
    component: Component[Config, Any],
    config: Config,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    dtype: WeightDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes flat parameters of any kind of network; arguments and errors as in `save_transformer`."""
    values = component.values(config, folder)
    tensors = component.tensors(config, parameters, dtype, folder)
    with new_component(folder, component.class_name, values) as temporary:
        write_tensors(temporary, tensors, max_shard_bytes, metadata)
