"""Levels and solvers are those of diffusers' schedulers, step for step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.diffusion.sampler import evaluations, sample
from genaffect_jax.diffusion.schedule import euler_sigmas

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.torch


def velocity(x, sigma, evaluation, memory):
    return jnp.sin(2 * x) + sigma * x - 0.3, memory


def their_velocity(x, sigma):
    return torch.sin(2 * x) + sigma * x - 0.3


def their_trajectory(scheduler, noise: np.ndarray, sigmas: np.ndarray) -> list[np.ndarray]:
    """The latents after each of diffusers' steps; `sigmas` are the levels of the evaluations."""
    scheduler.set_begin_index(0)
    latents, trajectory = torch.from_numpy(noise), []
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        latents = scheduler.step(their_velocity(latents, float(sigma)), timestep, latents).prev_sample
        trajectory.append(latents.numpy())
    return trajectory


def noise_of(steps: int) -> np.ndarray:
    return np.random.default_rng(steps).standard_normal((2, 4, 6, 3), np.float32)


@pytest.fixture(scope="module")
def draw() -> Callable:
    def latents(noise, sigmas, steps, solver):
        return sample(velocity, noise, sigmas, steps, solver)[0]

    return jax.jit(latents, static_argnums=3)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
def test_sigmas_equal_diffusers(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(euler_sigmas(steps, shift), scheduler.sigmas.numpy(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_every_euler_step_equals_diffusers(draw, steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    noise, sigmas = noise_of(steps), euler_sigmas(steps, shift)
    for done, expected in enumerate(their_trajectory(scheduler, noise, sigmas[:-1]), 1):
        np.testing.assert_allclose(draw(noise, sigmas, done, "euler"), expected, atol=5e-6, err_msg=f"step {done}")


@pytest.mark.parametrize("ours", [True, False], ids=["from sigma 1", "diffusers' levels"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_every_dpm_step_equals_diffusers(draw, steps: int, shift: float, ours: bool) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        final_sigmas_type="zero",
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=True,
    )
    scheduler.set_timesteps(steps)
    if ours:
        scheduler.sigmas = torch.from_numpy(euler_sigmas(steps, shift))
    noise, sigmas = noise_of(steps), scheduler.sigmas.numpy()
    assert (sigmas[0] == 1.0) == ours
    for done, expected in enumerate(their_trajectory(scheduler, noise, sigmas[:-1]), 1):
        found = draw(noise, sigmas, done, "dpm++")
        # Diffusers finds `1 - sigma_next / sigma` by way of exp(log(...)), which costs it some float32 digits.
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"step {done}")
    if steps >= 7:
        assert np.abs(found - draw(noise, sigmas, steps, "euler")).max() > 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_heun_equals_diffusers_and_float64(draw, steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    noise, sigmas = noise_of(steps), euler_sigmas(steps, shift)
    visited = [sigmas[0], *np.repeat(sigmas[1:-1], 2)]
    assert len(visited) == len(scheduler.timesteps) == evaluations("heun", steps)
    found = draw(noise, sigmas, steps, "heun")
    # Diffusers multiplies the velocity by sigma, subtracts, and divides again: at sigma 0.001 that leaves four digits.
    np.testing.assert_allclose(found, their_trajectory(scheduler, noise, np.array(visited))[-1], atol=2e-4)

    x = noise.astype(np.float64)
    for here, following in zip(sigmas[:-1].astype(np.float64), sigmas[1:].astype(np.float64), strict=True):
        slope = np.sin(2 * x) + here * x - 0.3
        ahead = x + (following - here) * slope
        if following > 0:
            ahead = x + (following - here) * (slope + np.sin(2 * ahead) + following * ahead - 0.3) / 2
        x = ahead
    np.testing.assert_allclose(found, x, atol=1e-5)
    if steps > 1:
        assert np.abs(found - draw(noise, sigmas, steps, "euler")).max() > 1e-3
