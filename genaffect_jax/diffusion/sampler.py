"""From noise to latents: solvers of the flow's equation. They know no network, only a velocity function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt32

from genaffect_jax.config import Solver
from genaffect_jax.diffusion.seeds import seed_key

Latents = Float[Array, "*batch h w c"]
# Any pytree that a velocity function hands from one evaluation to the next; None for none.
Carry = Any
Velocity = Callable[[Latents, Float[Array, ""], Int32[Array, ""], Carry], tuple[Latents, Carry]]
Count = TypeVar("Count", int, Int[Array, ""])

# Folded into the seed first, so that noise shares no key with what else is drawn from the seed.
NOISE_PURPOSE = 0x6E6F6973


def initial_noise(
    seed: UInt32[Array, " 2"], noise_ids: Int[Array, "*batch"], shape: tuple[int, ...]
) -> Float[Array, "*batch *shape"]:
    """Standard normal noise of each item, from a key folded from (seed, item).

    It depends on the item's number and never on its place in a batch, the batch's size or the devices.

    Args:
        seed: the run's seed, as `diffusion.seeds.seed_words`.
        noise_ids: number of each image, non-negative.
        shape: shape of one image's noise.
    """
    base = jax.random.fold_in(seed_key(seed), NOISE_PURPOSE)

    def noise(item: Int[Array, ""]) -> Float[Array, "*shape"]:
        return jax.random.normal(jax.random.fold_in(base, item), shape)

    flat = jax.vmap(noise)(jnp.ravel(noise_ids))
    return flat.reshape(*jnp.shape(noise_ids), *shape)


def evaluations(solver: Solver, steps: Count) -> Count:
    """How often `sample` evaluates the velocity: once a step, Heun's method twice in every step but the last.

    Raises:
        ValueError: an unknown solver.
    """
    if solver not in _SOLVERS:
        raise ValueError(f"solver {solver!r}: must be one of {', '.join(get_args(Solver))}")
    return 2 * steps - 1 if solver == "heun" else steps


def sample(
    velocity: Velocity,
    noise: Latents,
    sigmas: Float[Array, " levels+1"] | Float[np.ndarray, " levels+1"],
    steps: int | Int[Array, ""],
    solver: Solver = "euler",
    carry: Carry = None,
) -> tuple[Latents, Carry]:
    """Follows the velocity from noise to clean latents, `dx / dsigma = v(x, sigma)`.

    - `euler`: `x += (sigma_next - sigma) v`; first order.
    - `heun`: an Euler step, then the same step with the mean of the velocities at its two ends; second order, two
      evaluations a step. The last step is Euler's (Karras et al. 2022, arXiv 2206.00364, algorithm 1).
    - `dpm++`: DPM-Solver++(2M), second order at one evaluation a step (Lu et al. 2022, arXiv 2211.01095,
      algorithm 2): the predicted clean latents are extrapolated in `lambda = log((1 - sigma) / sigma)` from the last
      two evaluations. First order where one of the two levels or the next has no finite lambda: in the first step, in
      the step after one that began at sigma 1, and in the step to sigma 0.

    Args:
        velocity: `velocity(latents, sigma, evaluation, carry)` gives the velocity and the next carry. `evaluation`
            counts the evaluations from 0, int32; Heun's two of step i are `2 i` and `2 i + 1`. What else it needs it
            closes over.
        noise: where to start, at `sigmas[0]`.
        sigmas: falling noise levels; what follows the first `steps + 1` is never looked at, so levels may be padded
            (see `schedule.padded_sigmas`).
        steps: how many steps to do, 1 to `levels`. An array may be traced: the same program then does any number.
        solver: one of the three.
        carry: what the first evaluation is given; structure, shapes and dtypes stay the same throughout. It is
            updated in place if `velocity` writes before it reads, or makes what it writes depend on what it read;
            else XLA may keep a second copy.

    Returns:
        The latents at `sigmas[steps]`, float32, and the carry that the last evaluation returned.

    Raises:
        ValueError: an unknown solver, or a number of steps (if it is no array) that the levels do not allow.
    """
    levels = len(sigmas) - 1
    if isinstance(steps, (int, np.integer)) and not 1 <= steps <= levels:
        raise ValueError(f"steps={steps}: must be 1 to {levels}, the steps between the noise levels given")
    count = evaluations(solver, jnp.asarray(steps, jnp.int32))
    advance, level_of, kept = _SOLVERS[solver]
    sigmas = jnp.asarray(sigmas, jnp.float32)
    start = jnp.asarray(noise, jnp.float32)

    def evaluate(evaluation: Int32[Array, ""], state: tuple[Latents, _History, Carry]) -> Any:
        latents, history, carry = state
        slope, carry = velocity(latents, sigmas[level_of(evaluation)], evaluation, carry)
        latents, history = advance(evaluation, sigmas, latents, slope.astype(jnp.float32), history)
        return latents, history, carry

    # One loop over evaluations, not steps: the network stands in the program once, also for Heun's method. A traced
    # bound (a `while` in XLA) rather than a scan over padded levels whose body a `cond` skips: padding then costs
    # nothing at all, and the carried arrays are updated in place, where a `cond` inside the loop may copy them. What it
    # gives up is reverse-mode differentiation, which sampling has no use for.
    history = (jnp.zeros_like(start),) * kept
    latents, _, carry = jax.lax.fori_loop(jnp.int32(0), count, evaluate, (start, history, carry))
    return latents, carry


_History = tuple[Latents, ...]
_Advanced = tuple[Latents, _History]


def _euler(
    evaluation: Int32[Array, ""], sigmas: Float[Array, " levels+1"], latents: Latents, slope: Latents, history: _History
) -> _Advanced:
    return latents + (sigmas[evaluation + 1] - sigmas[evaluation]) * slope, history


def _heun(
    evaluation: Int32[Array, ""], sigmas: Float[Array, " levels+1"], latents: Latents, slope: Latents, history: _History
) -> _Advanced:
    """Even evaluations stand at the start of a step and go all of it; odd ones at its end, and go it again."""
    start, first = history
    begins, level = evaluation % 2 == 0, evaluation // 2
    start = jnp.where(begins, latents, start)
    slope = jnp.where(begins, slope, 0.5 * (first + slope))
    return start + (sigmas[level + 1] - sigmas[level]) * slope, (start, slope)


def _dpm(
    evaluation: Int32[Array, ""], sigmas: Float[Array, " levels+1"], latents: Latents, slope: Latents, history: _History
) -> _Advanced:
    """The first-order step of DPM-Solver++ is Euler's, since alpha = 1 - sigma; the second order adds to it.

    Of `sigma_next / sigma x - alpha_next (e^-h - 1) (D0 + h / (2 h_before) (D0 - D1))`, D the predicted clean latents,
    `-alpha_next (e^-h - 1)` is `1 - sigma_next / sigma`.
    """
    (before,) = history
    sigma, following = sigmas[evaluation], sigmas[evaluation + 1]
    clean = latents - sigma * slope
    # Without an evaluation before this one the index is -1, which is clamped: the outcome is not used.
    last, here, next_ = (_log_ratio(sigmas[i]) for i in (jnp.maximum(evaluation - 1, 0), evaluation, evaluation + 1))
    second_order = (evaluation > 0) & jnp.isfinite(last) & jnp.isfinite(next_)
    ratio = jnp.where(second_order, (next_ - here) / (here - last), 0.0)
    step = (following - sigma) * slope + 0.5 * (1.0 - following / sigma) * ratio * (clean - before)
    return latents + step, (clean,)


def _log_ratio(sigma: Float[Array, ""]) -> Float[Array, ""]:
    """Half the logarithm of the signal-to-noise ratio, `log((1 - sigma) / sigma)`."""
    return jnp.log1p(-sigma) - jnp.log(sigma)


def _step_of(evaluation: Int32[Array, ""]) -> Int32[Array, ""]:
    return evaluation


def _heun_level(evaluation: Int32[Array, ""]) -> Int32[Array, ""]:
    return (evaluation + 1) // 2


# How each solver goes on after an evaluation, at which noise level the evaluation is, and how many arrays it keeps.
_SOLVERS: dict[str, tuple[Callable[..., _Advanced], Callable[[Int32[Array, ""]], Int32[Array, ""]], int]] = {
    "euler": (_euler, _step_of, 0),
    "heun": (_heun, _heun_level, 2),
    "dpm++": (_dpm, _step_of, 1),
}
