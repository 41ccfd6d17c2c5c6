"""A network as a pure function of a flat dictionary of arrays.

Training, sampling and checkpoints handle parameters as `{"mmdit.out.kernel": array, ...}`. Sharding rules, optimizers,
averages and weight files all read that one form. A `Functional` splits off the module's structure once, when it is
made, and joins it with the arrays inside the jitted function that uses them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Self, TypeVar

import jax
from flax import nnx

Parameters = dict[str, jax.Array]
Module = TypeVar("Module", bound=nnx.Module)
Value = TypeVar("Value")


def parameters_of(module: nnx.Module) -> Parameters:
    """The flat parameters of a module that holds arrays: the inverse of `Functional.merge`."""
    return {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(module))}


class Functional(Generic[Module]):
    """Splits a module into structure and parameters.

    Attributes:
        shapes: name to shape and dtype of every parameter.
        logical_axes: name to the logical axis names of every parameter (see `parallel.sharding`).
        compute_dtypes: name of each kernel to the type that it is cast to before it is multiplied.
        buffers: names of arrays that are no parameters, such as the position table: `nnx.Variable`s that are no
            `nnx.Param`. They are handled like parameters, so that programs take them as arguments, not as constants.
        trainable: names that training may change: all parameters, unless `training` chose some.
        lora_params: trainable names that were added to the network in order to train it (`models.lora`).
    """

    def __init__(self, make: Callable[[nnx.Rngs], Module]):
        """`make(rngs)` builds the module. It runs abstractly here, so that no array is made.

        Raises:
            ValueError: a parameter names no logical axes, or not one per dimension.
        """
        self._make = make
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graph, state = nnx.split(abstract)
        self._variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct(v.get_value().shape, v.get_value().dtype)
            for name, (_, v) in self._variables.items()
        }
        self.logical_axes: dict[str, tuple[str | None, ...]] = {}
        self.compute_dtypes: dict[str, Any] = {}
        for name, (_, variable) in self._variables.items():
            axes = variable.get_metadata().get("logical_axes")
            if axes is None or len(axes) != len(self.shapes[name].shape):
                raise ValueError(f"{name}: logical axes {axes} for shape {self.shapes[name].shape}")
            self.logical_axes[name] = tuple(axes)
            if (dtype := variable.get_metadata().get("compute_dtypes")) is not None:
                self.compute_dtypes[name] = dtype
        self.trainable = frozenset(name for name, (_, v) in self._variables.items() if issubclass(v.type, nnx.Param))
        self.buffers = frozenset(self.shapes) - self.trainable
        self.lora_params: frozenset[str] = frozenset()

    def training(self, names: Collection[str]) -> Self:
        """The same network with only these parameters trainable.

        Raises:
            ValueError: a name is not in `trainable`.
        """
        unknown = sorted(set(names) - self.trainable)
        if unknown:
            raise ValueError(f"no trainable parameters: {unknown}")
        chosen = copy.copy(self)
        chosen.trainable = frozenset(names)
        return chosen

    def without_casts(self, names: Collection[str]) -> Self:
        """The same network, of which `cast_kernels` and samplers do not cast these kernels."""
        chosen = copy.copy(self)
        chosen.compute_dtypes = {name: dtype for name, dtype in self.compute_dtypes.items() if name not in names}
        return chosen

    def init(self, key: jax.Array) -> Parameters:
        """Random parameters from one typed key; jit it with output shardings to create them in place."""
        return parameters_of(self._make(nnx.Rngs(key)))

    def split(self, parameters: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
        """The entries of a flat dictionary in two parts: trainable and not."""
        return (
            {name: value for name, value in parameters.items() if name in self.trainable},
            {name: value for name, value in parameters.items() if name not in self.trainable},
        )

    def cast_kernels(self, parameters: Parameters) -> Parameters:
        """The given parameters, with kernels cast to the type in which they are multiplied.

        Layers cast the kernels that they are given. Casting all of them first has two advantages: forward and backward
        pass together read the float32 kernels only once, and devices that shard them exchange half precision. The price
        is that all cast copies exist at once.
        """
        return {n: x.astype(self.compute_dtypes[n]) if n in self.compute_dtypes else x for n, x in parameters.items()}

    def merge(self, parameters: Parameters) -> Module:
        """The module with these parameters.

        Raises:
            ValueError: names are missing or unknown (all are listed).
        """
        self._require_names(parameters)
        flat = [(path, variable.replace(parameters[name])) for name, (path, variable) in self._variables.items()]
        return nnx.merge(self._graph, nnx.from_flat_state(flat))

    def _require_names(self, parameters: Parameters) -> None:
        missing, unknown = (
            sorted(self.shapes.keys() - parameters.keys()),
            sorted(parameters.keys() - self.shapes.keys()),
        )
        if missing or unknown:
            raise ValueError(f"parameters: missing {missing}, unknown {unknown}")

    @property
    def size(self) -> int:
        """Number of parameters, counted as single numbers, trainable or not."""
        return sum(s.size for name, s in self.shapes.items() if name not in self.buffers)

    @property
    def trainable_size(self) -> int:
        """Number of trainable parameters, counted as single numbers."""
        return sum(self.shapes[name].size for name in self.trainable)
