"""The two kinds of networks that files of others hold: all that reading and writing need to know of each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from genaffect_jax.config import DType
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers import configs as component_configs
from genaffect_jax.interop.diffusers import key_tables
from genaffect_jax.interop.diffusers.inferred_configs import infer_autoencoder, infer_transformer
from genaffect_jax.interop.diffusers.original_layout import AUTOENCODER_LAYOUT, TRANSFORMER_LAYOUT, Layout
from genaffect_jax.interop.diffusers.parameters import ParameterTensors
from genaffect_jax.interop.diffusers.rules import Piece, Rule, Shape, match
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.mmdit.model import MMDiT

FREE_FIELDS = ("sample_size", "scan_layers", "remat")
"""Fields of a transformer that its weights do not depend on. `sample_size` is the size of the images; the position
table, which diffusers computes from it, is read from the weights."""

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
    original: Layout[Config] | None = None
    """Its names in one-file checkpoints; None if there are no such files."""
    infer: Callable[[Mapping[str, tuple[int, ...]]], Config] | None = None
    """Key without prefix and shape of all its tensors in the original layout, to our configuration."""

    def network(self, config: Config, compute_dtype: DType = "float32") -> Functional[Module]:
        """The module without arrays."""
        return _network(self, config, compute_dtype)

    def shapes(self, config: Config) -> dict[str, Shape]:
        """Name to shape of all parameters."""
        return {name: tuple(s.shape) for name, s in self.network(config).shapes.items()}

    def pieces(self, config: Config) -> dict[str, Piece]:
        """The tensors of such a network in diffusers, by key, each with its place among the parameters."""
        return {piece.key: piece for piece in match(self.rules(config), self.shapes(config), None, self.class_name)}

    def values(self, config: Config, where: Path) -> dict[str, Any]:
        """Entries of `config.json`.

        Raises:
            WeightsError: diffusers has no such network; the message names `where`, which is not written then.
        """
        try:
            return self.unparse(config)
        except ConfigError as e:
            raise WeightsError(f"{where}: not written: {e}") from e

    def tensors(
        self, config: Config, parameters: Mapping[str, jax.Array], dtype: WeightDType | None, where: Path
    ) -> ParameterTensors:
        """The tensors that parameters become; arguments and errors as in `ParameterTensors`."""
        return ParameterTensors(self.class_name, self.rules(config), self.shapes(config), parameters, dtype, where)


@lru_cache(maxsize=8)  # tracing a network takes about half a second, and reading, merging and writing all need it
def _network(component: Component[Config, Module], config: Config, compute_dtype: DType) -> Functional[Module]:
    return Functional(lambda rngs: component.make(config, compute_dtype, rngs))


TRANSFORMER = Component(
    "SD3Transformer2DModel",
    "transformer",
    component_configs.transformer_config,
    component_configs.transformer_values,
    key_tables.transformer_rules,
    lambda config, dtype, rngs: MMDiT(config, branches=None, rngs=rngs, dtype=jnp.dtype(dtype)),
    TRANSFORMER_LAYOUT,
    infer_transformer,
)
AUTOENCODER = Component(
    "AutoencoderKL",
    "vae",
    component_configs.autoencoder_config,
    component_configs.autoencoder_values,
    key_tables.autoencoder_rules,
    lambda config, dtype, rngs: AutoencoderKL(config, rngs=rngs, dtype=jnp.dtype(dtype)),
    AUTOENCODER_LAYOUT,
    infer_autoencoder,
)
