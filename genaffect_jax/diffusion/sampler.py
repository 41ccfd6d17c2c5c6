"""From noise to latents: samplers of the probability flow. They know no network, only a velocity function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genaffect_jax.config import Solver

# Folded into the seed first, so that noise shares no key with what else is drawn from the seed.
NOISE_PURPOSE = 0x6E6F6973

# (latents, sigma, evaluation, memory) -> (velocity, memory). `evaluation` counts the calls from 0; `memory` is whatever
# the caller carries from one to the next, None if nothing.
Velocity = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
_State = tuple[Array, Array, Any]  # latents, what the solver remembers of the last step, the caller's memory


def item_noise(
    seed: int | Int[Array, ""], items: Int[Array, "*batch"], shape: tuple[int, ...]
) -> Float[Array, "*batch *shape"]:
    """Standard normal noise of each item, from a key folded from (seed, item).

    It depends on the item's number and never on its place in a batch, the batch's size or the devices.

    Args:
        seed: the run's seed.
        items: number of each picture, non-negative.
        shape: shape of one picture's noise.
    """
    base = jax.random.fold_in(jax.random.key(seed), NOISE_PURPOSE)

    def noise(item: Int[Array, ""]) -> Float[Array, "*shape"]:
        return jax.random.normal(jax.random.fold_in(base, item), shape)

    flat = jax.vmap(noise)(jnp.ravel(items))
    return flat.reshape(*jnp.shape(items), *shape)


def evaluations(solver: Solver, steps: int) -> int:
    """How often the velocity is evaluated in so many steps."""
    return 2 * steps - 1 if solver == "heun" else steps


def sample(
    velocity: Velocity,
    noise: Float[Array, "*batch h w c"],
    sigmas: Float[Array, " N+1"],
    steps: int | Int[Array, ""],
    solver: Solver = "euler",
    memory: Any = None,
) -> tuple[Float[Array, "*batch h w c"], Any]:
    """Follows the velocity from noise to clean latents.

    - `euler`: `x += (sigma_next - sigma) v(x, sigma)`.
    - `heun`: the mean of the velocities at both ends of the step (Karras et al. 2022, arXiv 2206.00364, algorithm 1);
      the last step, to sigma 0, is Euler's. Evaluation 2 i is the start of step i, 2 i + 1 its end.
    - `dpm++`: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) for `x = (1 - sigma) clean + sigma
      noise`; the first step and the last, to sigma 0, are of first order.

    Args:
        velocity: see `Velocity`; whatever it needs beside its arguments it closes over.
        noise: where to start, at `sigmas[0]`.
        sigmas: falling noise levels; the ones after `sigmas[steps]` are not used.
        steps: number of steps, at most N. A traced number, so that changing it does not compile again.
        solver: how steps are taken.
        memory: carried through all evaluations.

    Returns:
        The latents at `sigmas[steps]`, float32, and the memory after the last evaluation.
    """
    levels = jnp.asarray(sigmas, jnp.float32)
    step = {"euler": _euler, "heun": _heun, "dpm++": _dpm}[solver]

    def advance(i: Array, state: _State) -> _State:
        before = levels[jnp.maximum(i - 1, 0)]
        return step(velocity, i, before, levels[i], levels[i + 1], state)

    start = noise.astype(jnp.float32)
    # What a solver remembers of the step before: the predicted clean latents. Others carry a number instead.
    previous = jnp.zeros_like(start) if solver == "dpm++" else jnp.zeros((), jnp.float32)
    # A loop with a traced end rather than a scan over padded levels: it runs the same body and skips none.
    latents, _, memory = jax.lax.fori_loop(0, steps, advance, (start, previous, memory))
    return latents, memory


def _euler(velocity: Velocity, i: Array, before: Array, sigma: Array, following: Array, state: _State) -> _State:
    latents, previous, memory = state
    slope, memory = velocity(latents, sigma, i, memory)
    return latents + (following - sigma) * slope.astype(jnp.float32), previous, memory


def _heun(velocity: Velocity, i: Array, before: Array, sigma: Array, following: Array, state: _State) -> _State:
    latents, previous, memory = state
    slope, memory = velocity(latents, sigma, 2 * i, memory)
    slope = slope.astype(jnp.float32)
    reached = latents + (following - sigma) * slope

    def corrected(memory: Any) -> tuple[Array, Any]:
        end, memory = velocity(reached, following, 2 * i + 1, memory)
        return latents + (following - sigma) * 0.5 * (slope + end.astype(jnp.float32)), memory

    # At sigma 0 there is nothing left to evaluate.
    latents, memory = jax.lax.cond(following > 0.0, corrected, lambda memory: (reached, memory), memory)
    return latents, previous, memory


def _dpm(velocity: Velocity, i: Array, before: Array, sigma: Array, following: Array, state: _State) -> _State:
    latents, previous, memory = state
    slope, memory = velocity(latents, sigma, i, memory)
    clean = latents - sigma * slope.astype(jnp.float32)

    def log_snr(level: Array) -> Array:
        """lambda = log(alpha / sigma), with alpha = 1 - sigma; finite at both ends."""
        bounded = jnp.clip(level, 1e-6, 1.0 - 1e-6)
        return jnp.log1p(-bounded) - jnp.log(bounded)

    h, last = log_snr(following) - log_snr(sigma), log_snr(sigma) - log_snr(before)
    first_order = (i == 0) | (following <= 0.0) | (before >= 1.0)
    slope_of_clean = jnp.where(first_order, 0.0, 0.5 * h / jnp.where(first_order, 1.0, last))
    direction = clean + slope_of_clean * (clean - previous)
    # sigma_next / sigma x - alpha_next (exp(-h) - 1) D, with exp(-h) = sigma_next alpha / (alpha_next sigma).
    ratio = following / sigma
    latents = ratio * latents + ((1.0 - following) - ratio * (1.0 - sigma)) * direction
    return latents, clean, memory
