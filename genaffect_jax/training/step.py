"""One optimizer step as a pure, sharded, jitted function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from genaffect_jax.diffusion.seeds import seed_key, seed_words
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.sharding import batch_parts, batch_shard, batch_sharding, replicated
from genaffect_jax.parallel.xla import compiler_options, deterministic, is_deterministic
from genaffect_jax.training.nonfinite import NORM, SKIPPED, all_finite, keep_if
from genaffect_jax.training.repetition import refuse_unrepeatable
from genaffect_jax.training.state import TrainState, state_shardings

Module = TypeVar("Module", bound=nnx.Module)
Batch = Mapping[str, Any]
Terms = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Terms of a loss, each as (sum, count): the division comes last, so that masks, accumulation and data parallelism
agree. The term `loss` is differentiated; its count must depend on no parameter."""
LossFunction = Callable[[Any, Any, Batch, Key[Array, " G"]], Terms]
"""`(module, frozen_components, batch, keys) -> Terms`. Every set has a key of its own, so that random numbers do not
depend on how a batch is divided."""


def make_train_step(
    functional: Functional,
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    seed: int,
    mesh: Mesh,
    gradient_accumulation_steps: int = 1,
) -> Callable[[TrainState, Mapping[str, Any], Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Builds the jitted step `(state, frozen_components, batch) -> (state, metrics)`.

    The state is donated. Every array of the batch is cut over all devices along its first dimension;
    `frozen_components`, a tree of arrays of other networks, lies whole on every device. Random numbers come from keys
    folded from seed, step and set, so that a step that is run again repeats them. A step that is made inside
    `parallel.xla.deterministic` is deterministic wherever it is called.

    Args:
        functional: the network that is trained.
        loss: see `LossFunction`.
        optimizer: gradient transformation.
        ema_decay: decay of the averaged parameters; `min(decay, (1 + step) / (10 + step))` in the first steps.
        seed: seed of noise and dropout.
        mesh: device mesh.
        gradient_accumulation_steps: number of parts that a batch is computed in, one after the other, each spread over
            all devices. The step equals that of the whole batch and holds the activations of one part.

    Returns:
        The step. Its metrics are the mean of every term, `gradient_norm` (before clipping), and `skipped`: 1 if the
        loss or a gradient was not finite, so that the step changed nothing but the step count.

    Raises:
        ConfigError: at the first call: the step cannot be deterministic (see `training.repetition`).
    """
    repeats = is_deterministic()

    def train_step(
        state: TrainState, frozen_components: Mapping[str, Any], batch: Batch
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        sets = len(next(iter(batch.values())))
        keys = jax.random.split(jax.random.fold_in(seed_key(seed_words(seed)), state.step), sets)

        def differentiate(batch: Batch, keys: jax.Array) -> tuple[Parameters, Terms]:
            def mean_loss(parameters: Parameters) -> tuple[Float[Array, ""], Terms]:
                module = functional.merge({**functional.cast_kernels(parameters), **state.frozen_params})
                terms = loss(module, frozen_components, batch, keys)
                total, count = terms["loss"]
                return total / count, terms

            return jax.grad(mean_loss, has_aux=True)(state.parameters)

        gradients, terms = accumulate_gradients(differentiate, (batch, keys), gradient_accumulation_steps)
        metrics = {name: total / count for name, (total, count) in terms.items()}
        updates, moments = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, parameters)
        norm = optax.tree.norm(gradients)
        finite = all_finite(metrics["loss"], norm)
        learned = keep_if(finite, (parameters, ema, moments), (state.parameters, state.ema, state.optimizer))
        metrics = {**metrics, NORM: norm, SKIPPED: 1.0 - finite}
        parameters, ema, moments = learned
        return TrainState(state.step + 1, parameters, state.frozen_params, ema, moments), metrics

    @wraps(train_step)
    def repeated(*arguments: Any) -> Any:
        with deterministic(repeats):
            return refuse_unrepeatable(train_step)(*arguments)

    shardings = state_shardings(functional, optimizer, mesh)
    return jax.jit(
        repeated,
        in_shardings=(shardings, replicated(mesh), batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.size),
    )


def accumulate_gradients(
    differentiate: Callable[..., tuple[Parameters, Terms]], examples: tuple[Any, ...], parts: int
) -> tuple[Parameters, Terms]:
    """Gradients of the mean loss over all examples, and summed terms, computed in parts.

    Args:
        differentiate: `(*examples) -> (gradients of the mean loss, terms)`.
        examples: trees of arrays of one length, which `parts` divides. A part holds every `parts`-th example, so that
            it is cut over devices as the whole is.
        parts: number of parts.
    """
    if parts == 1:
        return differentiate(*examples)

    def add(so_far: tuple[Parameters, Terms], part: tuple[Any, ...]) -> tuple[tuple[Parameters, Terms], None]:
        gradients, terms = differentiate(*part)
        count = terms["loss"][1]
        return jax.tree.map(jnp.add, so_far, (jax.tree.map(lambda g: g * count, gradients), terms)), None

    cut = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(len(x) // parts, parts, *x.shape[1:]), 1, 0), examples)
    shapes = jax.eval_shape(differentiate, *jax.tree.map(lambda x: x[0], cut))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradients, terms), _ = jax.lax.scan(add, nothing, cut)
    return jax.tree.map(lambda g: g / terms["loss"][1], gradients), terms


def device_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's shard of a batch (numpy arrays) on its devices, cut along the first dimension. A batch that
    lies there already (JAX arrays) stays as it is.

    Raises:
        ValueError: the batch does not divide over the mesh.
    """
    if all(isinstance(array, jax.Array) for array in batch.values()):
        return dict(batch)
    sharding = batch_sharding(mesh)
    parts = batch_parts(mesh) // batch_shard(mesh)[1]
    for name, array in batch.items():
        if len(array) % parts:
            raise ValueError(
                f"batch {name!r}: {len(array)} examples do not divide over {parts} parts; "
                "choose train.batch_size as a multiple of mesh.data * mesh.fsdp"
            )
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
