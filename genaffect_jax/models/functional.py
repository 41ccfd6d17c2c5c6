"""A network as a pure function of a flat dictionary of arrays.

Training, sampling and checkpoints handle parameters as `{"blocks.attention.query": array, ...}`: sharding rules,
optimisers, averages and weight files all read that one form. The module's structure is split off once, when the
`Functional` is made, and joined with the arrays inside the jitted function that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

Parameters = dict[str, jax.Array]
Module = TypeVar("Module", bound=nnx.Module)


def _constants_of(module: nnx.Module) -> Any:
    return nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))


class Functional(Generic[Module]):
    """Splits a module into structure and parameters.

    Attributes:
        shapes: name to shape and dtype of every parameter.
        logical_axes: name to the logical axis names of every parameter (see `parallel.sharding`).
    """

    def __init__(self, make: Callable[[nnx.Rngs], Module]):
        """`make(rngs)` builds the module; here it runs abstractly, so no array is made.

        Raises:
            ValueError: a parameter names no logical axes, or not one per dimension.
        """
        self._make = make
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graph, *states = nnx.split(abstract, nnx.Param, ...)
        state, constants = states
        self._variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct(v.get_value().shape, v.get_value().dtype)
            for name, (_, v) in self._variables.items()
        }
        self.logical_axes: dict[str, tuple[str | None, ...]] = {}
        for name, (_, variable) in self._variables.items():
            axes = variable.get_metadata().get("logical_axes")
            if axes is None or len(axes) != len(self.shapes[name].shape):
                raise ValueError(f"{name}: logical axes {axes} for shape {self.shapes[name].shape}")
            self.logical_axes[name] = tuple(axes)

        # Variables that never train (a position table); under jit the random parameters beside them are not made.
        self._constants = nnx.to_flat_state(constants)
        self._constant_values: list[jax.Array] = []
        if self._constants:
            self._constant_values = jax.jit(lambda: [v.get_value() for _, v in _constants_of(make(nnx.Rngs(0)))])()

    def init(self, key: jax.Array) -> Parameters:
        """Random parameters from one typed key; jit it with output shardings to create them in place."""
        module = self._make(nnx.Rngs(key))
        flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
        return {".".join(map(str, path)): v.get_value() for path, v in flat}

    def merge(self, parameters: Parameters) -> Module:
        """The module with these parameters.

        Raises:
            ValueError: names are missing or unknown (all are listed).
        """
        missing, unknown = (
            sorted(self.shapes.keys() - parameters.keys()),
            sorted(parameters.keys() - self.shapes.keys()),
        )
        if missing or unknown:
            raise ValueError(f"parameters: missing {missing}, unknown {unknown}")
        flat = [(path, variable.replace(parameters[name])) for name, (path, variable) in self._variables.items()]
        constants = [(path, v.replace(x)) for (path, v), x in zip(self._constants, self._constant_values, strict=True)]
        return nnx.merge(self._graph, nnx.from_flat_state(flat), nnx.from_flat_state(constants))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(s.size for s in self.shapes.values())
