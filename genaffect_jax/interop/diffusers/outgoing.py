"""Parameters of this package, seen as the tensors of a diffusers file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.components import Component, Config
from genaffect_jax.io.weight_file import WeightDType, misfits


class ParameterTensors:
    """The tensors that parameters become in diffusers, made one at a time (see `tensor_files.Tensors`).

    Attributes:
        config: the entries of diffusers' `config.json`.
    """

    def __init__(
        self,
        component: Component[Config, Any],
        config: Config,
        parameters: Mapping[str, jax.Array],
        dtype: WeightDType | None,
        where: Path,
    ):
        """Args:
            component: the kind of network.
            config: its configuration.
            parameters: its parameters, all of them and no others.
            dtype: type of the tensors, rounded to nearest; None for each parameter's own type.
            where: the file or folder to write, named in errors.

        Raises:
            WeightsError: diffusers has no such network, or parameters are missing, unknown, of another shape or partly
                on other hosts (all are named).
        """
        try:
            self.config = component.unparse(config)
        except ConfigError as e:
            raise WeightsError(f"{where}: not written: {e}") from e
        shapes = {name: s.shape for name, s in component.network(config).shapes.items()}
        problems = misfits({name: tuple(p.shape) for name, p in parameters.items()}, shapes)
        problems += [
            f"{name} lies partly on other hosts" for name, p in parameters.items() if not p.is_fully_addressable
        ]
        if problems:
            raise WeightsError(
                f"{where}: not written: {component.class_name} with other parameters: {'; '.join(problems)}"
            )
        self._pieces = component.pieces(config)
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
        require_finite(value, key, self.dtypes[key], self._where)
        return value


def require_finite(value: np.ndarray, key: str, dtype: str, where: Path) -> None:
    """Raises WeightsError if a number is not finite."""
    if not np.isfinite(value).all():
        raise WeightsError(f"{where}: {key} holds numbers that are not finite as {dtype}")
