"""LoRA: trainable low-rank additions to chosen kernels of a network (Hu et al. 2021, arXiv 2106.09685).

The kernel W of a linear layer becomes `W + alpha / r * A @ B` (section 4.1 there). W is frozen; A and B are parameters
named `<name of W>.lora_a` and `.lora_b`. The sum is computed before the module gets its kernels, so that no layer knows
of it. The price is that sum and gradient of whole kernels exist during a step.
"""

from __future__ import annotations

import zlib
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp

from genaffect_jax.config import LoraConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.functional import Functional, Module, Parameters

LORA_A, LORA_B = "lora_a", "lora_b"
FACTORS = (LORA_A, LORA_B)


class LoraNetwork(Functional[Module]):
    """A network with low-rank additions.

    Its parameters are those of the base, of which the target kernels are frozen, and two factors for each target: A
    [*layers, in, r], initially normal with variance 1 / in, and B [*layers, r, out], initially zero, so that the
    network starts as the base.
    """

    def __init__(self, base: Functional[Module], config: LoraConfig):
        """Args:
            base: the network without additions.
            config: a rank of at least 1, the scale, and patterns of the kernels' names.

        Raises:
            ConfigError: a pattern matches no parameter, or one that is no kernel of a linear layer.
        """
        self.base, self.config = base, config
        self.targets = _targets(base, config)
        self.shapes = dict(base.shapes)
        self.logical_axes = dict(base.logical_axes)
        for name in self.targets:
            *layers, rows, columns = base.shapes[name].shape
            *layer_axes, row_axis, column_axis = base.logical_axes[name]
            dtype = base.shapes[name].dtype
            self.shapes[f"{name}.{LORA_A}"] = jax.ShapeDtypeStruct((*layers, rows, config.rank), dtype)
            self.shapes[f"{name}.{LORA_B}"] = jax.ShapeDtypeStruct((*layers, config.rank, columns), dtype)
            self.logical_axes[f"{name}.{LORA_A}"] = (*layer_axes, row_axis, None)
            self.logical_axes[f"{name}.{LORA_B}"] = (*layer_axes, None, column_axis)
        self.lora_params = frozenset(self.shapes) - frozenset(base.shapes)
        self.buffers = base.buffers
        # The sums are cast to the compute type, not their parts.
        self.compute_dtypes = {n: dtype for n, dtype in base.compute_dtypes.items() if n not in self.targets}
        self.trainable = (base.trainable - frozenset(self.targets)) | self.lora_params

    def init(self, key: jax.Array) -> Parameters:
        """Random parameters from one typed key; those of the base equal `base.init` of that key."""
        parameters = self.base.init(key)
        for name in self.targets:
            a, b = (f"{name}.{factor}" for factor in FACTORS)
            shape, dtype = self.shapes[a].shape, self.shapes[a].dtype
            own = jax.random.fold_in(key, zlib.crc32(a.encode()))
            parameters[a] = jax.random.normal(own, shape, dtype) / jnp.sqrt(jnp.asarray(shape[-2], dtype))
            parameters[b] = jnp.zeros(self.shapes[b].shape, dtype)
        return parameters

    def merge(self, parameters: Parameters) -> Module:
        """The base's module with the additions in its kernels.

        Raises:
            ValueError: names are missing or unknown (all are listed).
        """
        return self.base.merge(self.plain(parameters))

    def plain(self, parameters: Parameters) -> Parameters:
        """The base's parameters with the additions in its kernels: `W + alpha / r * A @ B`; nothing else changes.

        Raises:
            ValueError: names are missing or unknown (all are listed).
        """
        self._require_names(parameters)
        merged = {name: parameters[name] for name in self.base.shapes}
        scale = self.config.alpha / self.config.rank
        for name in self.targets:
            a, b = (parameters[f"{name}.{factor}"] for factor in FACTORS)
            # Without HIGHEST, GPUs and TPUs round the factors of float32 products. Full precision costs little here.
            merged[name] = merged[name] + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return merged


def _targets(base: Functional, config: LoraConfig) -> tuple[str, ...]:
    """The names of the kernels that the patterns match, sorted."""
    found: set[str] = set()
    for pattern in config.targets:
        matching = {name for name in base.shapes if fnmatchcase(name, pattern)}
        if not matching:
            raise ConfigError(
                f"lora.targets: {pattern!r} matches no parameter; kernels are named like "
                f"{next(n for n in sorted(base.shapes) if _is_linear_kernel(base, n))}"
            )
        wrong = sorted(name for name in matching if not _is_linear_kernel(base, name))
        if wrong:
            raise ConfigError(f"lora.targets: {pattern!r} matches what is no kernel of a linear layer: {wrong}")
        found |= matching
    return tuple(sorted(found))


def _is_linear_kernel(base: Functional, name: str) -> bool:
    """Whether the parameter is a trainable kernel [in, out], or a stack of them, one per layer."""
    own = [axis for axis in base.logical_axes[name] if axis != "layers"]
    return name in base.trainable and name.endswith(".kernel") and len(own) == 2
