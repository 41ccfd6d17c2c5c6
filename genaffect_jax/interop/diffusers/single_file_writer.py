"""Writes networks as one checkpoint in the original layout, which ComfyUI and diffusers' `from_single_file` read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.components import AUTOENCODER, FREE_FIELDS, TRANSFORMER, Component, Config
from genaffect_jax.interop.diffusers.original_layout import Original
from genaffect_jax.interop.diffusers.parameters import ParameterTensors
from genaffect_jax.interop.diffusers.tensor_files import write_file
from genaffect_jax.io.atomic import new_file
from genaffect_jax.io.weight_file import WeightDType


class CheckpointTensors:
    """The tensors of a checkpoint, by their keys in the file (see `tensor_files.Tensors`)."""

    def __init__(self, networks: Sequence[tuple[str, ParameterTensors, Mapping[str, Original]]]):
        """`networks`: prefix, tensors in diffusers and table of each network."""
        self._places: dict[str, tuple[ParameterTensors, Original]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, WeightDType] = {}
        for prefix, tensors, originals in networks:
            for key, original in originals.items():
                self._places[prefix + key] = tensors, original
                self.shapes[prefix + key] = original.shape(tensors.shapes)
                self.dtypes[prefix + key] = tensors.dtypes[original.parts[0]]

    def read(self, key: str) -> np.ndarray:
        """One tensor."""
        tensors, original = self._places[key]
        return original.to_original([tensors.read(part) for part in original.parts])


def write_single_file(
    path: Path,
    transformer: tuple[Any, Mapping[str, jax.Array]],
    autoencoder: tuple[Any, Mapping[str, jax.Array]] | None,
    *,
    dtype: WeightDType,
    metadata: Mapping[str, str],
    hash_entry: str | None = None,
) -> None:
    """Writes a checkpoint, atomically; one tensor at a time is held in memory.

    Args:
        path: the file; an earlier one is replaced.
        transformer: `MMDiTConfig` and parameters of a transformer without condition branches.
        autoencoder: `AutoencoderConfig` and parameters; None leaves the autoencoder out.
        dtype: stored type, rounded to nearest.
        metadata, hash_entry: see `tensor_files.write_file`.

    Raises:
        WeightsError: the layout has no such network, or leaves out a field in which the network differs from SD3;
            parameters are missing or unknown; or a number is not finite in the stored type.
    """
    networks = [_network(path, TRANSFORMER, *transformer, dtype)]
    if autoencoder is not None:
        networks.append(_network(path, AUTOENCODER, *autoencoder, dtype))
    with new_file(path, durable=True) as temporary:
        write_file(temporary, CheckpointTensors(networks), metadata, hash_entry)


def _network(
    path: Path,
    component: Component[Config, Any],
    config: Config,
    parameters: Mapping[str, jax.Array],
    dtype: WeightDType,
) -> tuple[str, ParameterTensors, Mapping[str, Original]]:
    component.values(config, path)  # refuses what diffusers does not have
    tensors = component.tensors(config, parameters, dtype, path)
    assert component.original is not None
    assert component.infer is not None
    originals = component.original.tensors(config, tensors.shapes)
    inferred = component.infer({key: original.shape(tensors.shapes) for key, original in originals.items()})
    lost = [
        f"{field.name}={getattr(config, field.name)} (readers take {getattr(inferred, field.name)})"
        for field in dataclasses.fields(config)  # type: ignore[arg-type]  # all configurations are dataclasses
        if field.name not in FREE_FIELDS and getattr(config, field.name) != getattr(inferred, field.name)
    ]
    if lost:
        raise WeightsError(
            f"{path}: not written: a one-file checkpoint cannot say of an {component.class_name}: {'; '.join(lost)}"
        )
    return component.original.prefix, tensors, originals
