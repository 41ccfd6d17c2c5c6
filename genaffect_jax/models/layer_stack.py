"""Equal layers with stacked parameters, run as one scan or unrolled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from genaffect_jax.kernels.remat import POLICIES, Remat


class LayerStack(nnx.Module):
    """Equal layers with their parameters stacked along a leading axis (logical name `layers`).

    Scanned and unrolled runs share parameters and code, so that checkpoints do not depend on the choice.

    Args:
        make: builds one layer, `make(rngs=...)`.
        length: number of layers.
        scan: run as a loop, of which one layer is compiled; otherwise unrolled.
        remat: what the backward pass computes again in each layer: nothing (`none`), everything but products with
            weights and attention kernels (`named`), everything but products with weights (`dots`), or everything
            (`full`).
        rngs: source of the initial values; each layer has its own.
    """

    def __init__(
        self, make: Callable[..., nnx.Module], length: int, *, scan: bool, remat: Remat, rngs: nnx.Rngs
    ) -> None:
        self.length, self.scan, self.remat = length, scan, remat

        def initial_state(key: Array) -> nnx.State:
            return nnx.split(make(rngs=nnx.Rngs(key)))[1]

        graph = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]
        self.layers = nnx.merge(graph, jax.jit(jax.vmap(initial_state))(jax.random.split(rngs.params(), length)))
        for _, variable in nnx.iter_graph(self.layers):
            if isinstance(variable, nnx.Variable):
                variable.set_metadata(logical_axes=("layers", *variable.get_metadata()["logical_axes"]))

    def run(
        self,
        step: Callable[[Any, Any, Any], tuple[Any, Any]],
        carry: Any,
        per_layer: Any = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Any:
        """Folds `carry, output = step(layer, carry, per_layer[i])` over the layers `start` to `stop` in order.

        `per_layer` has an entry for each layer, run or not.

        Returns:
            The last carry, and the outputs of the layers that ran, stacked.
        """
        graph, state = nnx.split(self.layers)
        stop = self.length if stop is None else stop
        if (start, stop) != (0, self.length):
            state, per_layer = jax.tree.map(lambda x: x[start:stop], (state, per_layer))

        def body(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            layer_state, layer_inputs = inputs
            return step(nnx.merge(graph, layer_state), carry, layer_inputs)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[self.remat])
        if self.scan:
            return jax.lax.scan(body, carry, (state, per_layer))
        # All layers are cut out by one split, whose gradient is one concatenation. A scan that XLA unrolls would still
        # copy the results of every layer into stacks.
        leaves, structure = jax.tree.flatten((state, per_layer))
        pieces = [[x[0] for x in jax.lax.split(leaf, (1,) * (stop - start))] for leaf in leaves]
        outputs = []
        for layer in zip(*pieces, strict=True):
            carry, output = body(carry, jax.tree.unflatten(structure, layer))
            outputs.append(output)
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)

    def map(self, function: Callable[[Any], Any]) -> Any:
        """`function(layer)` of all layers at once, stacked along a leading axis."""
        graph, state = nnx.split(self.layers)
        return jax.vmap(lambda layer_state: function(nnx.merge(graph, layer_state)))(state)


def join_layers(*trees: Any) -> Any:
    """Concatenates trees of equal structure along the leading axis of their arrays, that of the layers."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *trees)
