"""The training state: parameters, their average, the optimizer's moments and the step, all created sharded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from genaffect_jax.diffusion.seeds import seed_key, seed_words
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.sharding import parameter_shardings, replicated
from genaffect_jax.parallel.xla import deterministic_options


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The part of a training run that lies on the devices and changes."""

    step: Int32[Array, ""]
    """Number of steps done."""
    parameters: Parameters
    """The trained parameters."""
    frozen_params: Parameters
    """The other parameters of the same network."""
    ema: Parameters
    """Exponential moving average of `parameters`."""
    optimizer: Any
    """The optimizer's moments of `parameters`."""

    @property
    def averaged(self) -> Parameters:
        """All parameters of the network, averages of the trained ones: those that sampling uses."""
        return {**self.ema, **self.frozen_params}


def state_shardings(functional: Functional, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A `TrainState` of shardings. Averages and moments are cut as their parameters are; everything else is replicated:
    scalars, and row and column means of moments, which are small.

    Raises:
        ValueError: the mesh does not fit a parameter (see `parallel.sharding.partition_spec`).
    """
    parameters, frozen_params = functional.split(parameter_shardings(functional.logical_axes, functional.shapes, mesh))
    shapes = functional.split(functional.shapes)[0]
    moments = optax.tree_map_params(
        optimizer,
        lambda moment, parameter, sharding: sharding if moment.shape == parameter.shape else replicated(mesh),
        jax.eval_shape(optimizer.init, shapes),
        shapes,
        parameters,
        transform_non_params=lambda _: replicated(mesh),
    )
    # A checker sees arrays in these places; the tree has to be a TrainState all the same.
    places: Any = (replicated(mesh), parameters, frozen_params, parameters, moments)
    return TrainState(*places)


def create_state(
    functional: Functional,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    given: Parameters | None = None,
) -> TrainState:
    """Initialises the state under jit with output shardings, so that no device ever holds all of it.

    Args:
        functional: the network.
        optimizer: gradient transformation.
        mesh: device mesh.
        seed: seed of the random parameters.
        given: initial values of some parameters, on the devices as in training; donated to the state.

    Raises:
        ValueError: a given parameter is unknown or has another shape or type; all are named.
    """
    given = given or {}
    wrong = [
        f"{name} {value.dtype}{list(value.shape)}"
        for name, value in given.items()
        if name not in functional.shapes
        or (value.shape, value.dtype) != (functional.shapes[name].shape, functional.shapes[name].dtype)
    ]
    if wrong:
        raise ValueError(f"given parameters are unknown, or of another shape or type: {', '.join(wrong)}")

    def create(key: jax.Array, given: Parameters) -> TrainState:
        parameters, frozen_params = functional.split({**functional.init(key), **given})
        # The average gets its own buffers: both are donated to the step.
        ema = jax.tree.map(jnp.copy, parameters)
        return TrainState(jnp.zeros((), jnp.int32), parameters, frozen_params, ema, optimizer.init(parameters))

    shardings = state_shardings(functional, optimizer, mesh)
    program = jax.jit(create, out_shardings=shardings, donate_argnums=1, compiler_options=deterministic_options())
    return program(seed_key(seed_words(seed)), given)


def abstract_state(functional: Functional, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, for restoring a checkpoint straight to its devices."""

    def create() -> TrainState:
        zeros, frozen_params = functional.split(
            {name: jnp.zeros(s.shape, s.dtype) for name, s in functional.shapes.items()}
        )
        return TrainState(jnp.zeros((), jnp.int32), zeros, frozen_params, zeros, optimizer.init(zeros))

    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        jax.eval_shape(create),
        state_shardings(functional, optimizer, mesh),
    )
