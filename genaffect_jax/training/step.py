"""One optimiser step as a pure, sharded, jitted function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.compiler import compiler_options
from genaffect_jax.parallel.sharding import batch_parts, batch_sharding, batch_share, replicated
from genaffect_jax.training.guard import NORM, SKIPPED, all_finite, keep_if
from genaffect_jax.training.state import TrainState, state_shardings

Module = TypeVar("Module", bound=nnx.Module)
Batch = Mapping[str, Any]
# name -> (sum, count); reduced once, so masks, accumulation and data parallelism agree. "loss" is differentiated.
Terms = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
LossFunction = Callable[[Any, Any, Batch, jax.Array], Terms]


def make_train_step(
    functional: Functional,
    loss: LossFunction,
    optimiser: optax.GradientTransformation,
    *,
    ema_decay: float,
    seed: int,
    mesh: Mesh,
) -> Callable[[TrainState, Mapping[str, Any], Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Builds the jitted step `(state, frozen, batch) -> (state, metrics)`.

    The state is donated. Every leaf of the batch is cut over all devices along its first dimension; `frozen`
    (arrays that do not train, in any tree) lies whole on every device. Randomness comes from a key folded from
    (seed, step): restarting at a step repeats it.

    Args:
        functional: the network that trains.
        loss: `(module, frozen, batch, key) -> Terms`.
        optimiser: gradient transformation.
        ema_decay: decay of the averaged weights; `min(decay, (1 + step) / (10 + step))` while young.
        seed: seed of noise and dropout.
        mesh: device mesh.

    Returns:
        The step; its metrics hold every term's mean, `gradient_norm` (before clipping), and `skipped`: 1 if loss or
        gradients were not finite, so that the step changed nothing but its own number.
    """

    def train_step(
        state: TrainState, frozen: Mapping[str, Any], batch: Batch
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(parameters: Parameters) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            terms = loss(functional.merge({**parameters, **state.fixed}), frozen, batch, key)
            means = {name: total / count for name, (total, count) in terms.items()}
            return means["loss"], means

        gradients, metrics = jax.grad(objective, has_aux=True)(state.parameters)
        updates, moments = optimiser.update(gradients, state.optimiser, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, parameters)
        norm = optax.tree.norm(gradients)
        finite = all_finite(metrics["loss"], norm)
        learned = keep_if(finite, (parameters, ema, moments), (state.parameters, state.ema, state.optimiser))
        metrics = {**metrics, NORM: norm, SKIPPED: 1.0 - finite}
        parameters, ema, moments = learned
        return TrainState(state.step + 1, parameters, state.fixed, ema, moments), metrics

    shardings = state_shardings(functional, optimiser, mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, replicated(mesh), batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )


def device_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's share of a batch (numpy arrays) on its devices, cut along the first dimension.

    Raises:
        ValueError: the batch does not divide over the mesh.
    """
    sharding = batch_sharding(mesh)
    parts = batch_parts(mesh) // batch_share(mesh)[1]
    for name, array in batch.items():
        if len(array) % parts:
            raise ValueError(f"batch {name!r}: {len(array)} examples do not divide over {parts} parts; "
                             "choose train.batch_size as a multiple of mesh.data * mesh.fsdp")  # fmt: skip
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
