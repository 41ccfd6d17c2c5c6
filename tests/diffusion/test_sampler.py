"""The noise of an item, the levels, and the solvers."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.diffusion.sampler import Solver, evaluations, initial_noise, sample
from genaffect_jax.diffusion.schedule import STEP_BUCKETS, euler_sigmas, padded_sigmas, shift_sigma
from genaffect_jax.diffusion.seeds import seed_words

SOLVERS = get_args(Solver)
LEVELS = np.array([1.0, 0.5, 0.25, 0.0], np.float32)


def by_hand(latents, sigma, evaluation, memory):
    return 2.0 * latents + sigma, memory


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        # v = 2 x + sigma over the levels 1, 0.5, 0.25, 0, from x = 1:
        # 1      + (0.5 - 1)    * (2 * 1      + 1)    = -0.5
        # -0.5   + (0.25 - 0.5) * (2 * -0.5   + 0.5)  = -0.375
        # -0.375 + (0 - 0.25)   * (2 * -0.375 + 0.25) = -0.25
        ("euler", (-0.5, -0.375, -0.25)),
        # Slopes 3 and 2 * -0.5 + 0.5 = -0.5, mean 1.25: 1 - 0.5 * 1.25 = 0.375
        # Slopes 1.25 and 2 * 0.0625 + 0.25 = 0.375, mean 0.8125: 0.375 - 0.25 * 0.8125 = 0.171875
        # The last step is Euler's: 0.171875 - 0.25 * (2 * 0.171875 + 0.25) = 0.0234375
        ("heun", (-0.5, -0.375 + 0.546875, 0.0234375)),
        # Sigma 1 has no finite lambda, and neither has sigma 0: all three steps are Euler's.
        ("dpm++", (-0.5, -0.375, -0.25)),
    ],
)
def test_trajectory_equals_one_computed_by_hand(solver, expected) -> None:
    def end(steps):
        return float(sample(by_hand, jnp.ones((1, 1, 1)), LEVELS, steps, solver)[0].squeeze())

    np.testing.assert_allclose(end(3), expected[2], rtol=1e-6)
    if solver != "heun":  # whose last step differs from the same step of a longer run
        np.testing.assert_allclose([end(1), end(2)], expected[:2], rtol=1e-6)


def test_the_second_order_step_of_dpm_equals_one_computed_by_hand() -> None:
    # Levels 0.8, 0.5, 0.2: lambda = log(1/4), 0, log(4), so h equals the h before and the ratio is 1. v = 2 x + sigma.
    # x = 1:    v = 2.8, D = 1 - 0.8 * 2.8 = -1.24, x = 1 - 0.3 * 2.8 = 0.16
    # x = 0.16: v = 0.82, D = 0.16 - 0.5 * 0.82 = -0.25;
    #           x = 0.2 / 0.5 * 0.16 + (1 - 0.2 / 0.5) * (-0.25 + 0.5 * (-0.25 + 1.24)) = 0.064 + 0.6 * 0.245 = 0.211
    found, _ = sample(by_hand, jnp.ones((1, 1, 1)), np.array([0.8, 0.5, 0.2], np.float32), 2, "dpm++")
    np.testing.assert_allclose(found, 0.211, rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_straight_paths_end_at_the_data_whatever_the_steps(solver) -> None:
    noise, clean = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2)), jnp.full((2, 3, 4, 4, 2), 0.7)
    for steps in (1, 2, 5):
        found, _ = sample(lambda x, *_: (noise - clean, None), noise, euler_sigmas(steps, 3.0), steps, solver)
        np.testing.assert_allclose(found, clean, atol=1e-5)


def log_ratio_levels(steps: int) -> np.ndarray:
    """Levels from 0.98 to 0.02, equally far apart in `log((1 - sigma) / sigma)`."""
    ends = [np.log(1 / sigma - 1) for sigma in (0.98, 0.02)]
    return 1 / (1 + np.exp(np.linspace(*ends, steps + 1)))


# Measured: 0.99 (euler), 2.08 (heun), 1.76 and 1.94 (dpm++). Between the levels 1 and 0, which have no finite lambda,
# dpm++ tends to order 2 slowly, and only with many steps: its expansion is in lambda, and near the ends the steps in
# lambda do not become small.
@pytest.mark.parametrize(
    ("solver", "levels", "counts", "order"),
    [
        ("euler", lambda n: np.linspace(1, 0, n + 1), (32, 64, 128, 256), 1.0),
        ("heun", lambda n: np.linspace(1, 0, n + 1), (8, 16, 32, 64), 2.0),
        ("dpm++", lambda n: np.linspace(1, 0, n + 1), (128, 256, 512), 1.75),
        ("dpm++", log_ratio_levels, (16, 32, 64, 128), 2.0),
    ],
    ids=["euler", "heun", "dpm++", "dpm++ between finite lambdas"],
)
def test_error_on_gaussian_data_falls_with_the_order_of_the_solver(solver, levels, counts, order) -> None:
    # Data N(m, s^2): x = sigma noise + (1 - sigma) data has mean (1 - sigma) m and variance
    # q = (1 - sigma)^2 s^2 + sigma^2; the velocity E[noise - data | x] is (sigma - (1 - sigma) s^2) / q (x - mean) - m,
    # and its flow keeps the standard score z: the exact solution is x = (1 - sigma) m + sqrt(q) z.
    mean, deviation = 0.7, 0.4

    def variance(sigma):
        return (1 - sigma) ** 2 * deviation**2 + sigma**2

    def velocity(x, sigma, evaluation, memory):
        slope = (sigma - (1 - sigma) * deviation**2) / variance(sigma)
        return slope * (x - (1 - sigma) * mean) - mean, memory

    def exact(sigma):
        return (1 - sigma) * mean + variance(sigma) ** 0.5 * score

    score = np.linspace(-2.0, 2.0, 8).reshape(2, 2, 2)
    draw = jax.jit(lambda noise, sigmas, steps: sample(velocity, noise, sigmas, steps, solver)[0])
    errors = []
    for steps in counts:
        sigmas = levels(steps)
        found = draw(exact(sigmas[0]), np.pad(sigmas, (0, counts[-1] - steps)), steps)
        errors.append(np.abs(found - exact(sigmas[-1])).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    print(f"{solver}: errors {', '.join(f'{e:.1e}' for e in errors)}; order {slope:.2f}")
    assert errors[-1] < (0.006 if order == 1 else 5e-4)
    assert abs(slope - order) < 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_passes_through_every_evaluation_in_order(solver) -> None:
    # The memory is a log: evaluation n writes its number and noise level in row n.
    def velocity(x, sigma, evaluation, memory):
        log, count = memory
        assert evaluation.dtype == jnp.int32
        assert sigma.dtype == x.dtype == jnp.float32
        return x.astype(jnp.bfloat16), (log.at[count].set(jnp.array([evaluation, sigma])), count + 1)

    steps = 5
    sigmas = padded_sigmas(steps, 2.0)
    count = evaluations(solver, steps)
    blank = (jnp.full((20, 2), -1.0), jnp.int32(0))
    latents, (log, total) = sample(velocity, jnp.ones((2, 2, 1), jnp.bfloat16), sigmas, steps, solver, blank)
    expected = {
        "euler": sigmas[:5],
        "dpm++": sigmas[:5],
        "heun": sigmas[[0, 1, 1, 2, 2, 3, 3, 4, 4]],
    }[solver]
    assert latents.dtype == jnp.float32
    assert total == count == len(expected)
    np.testing.assert_array_equal(log[:count, 0], np.arange(count))
    np.testing.assert_array_equal(log[:count, 1], expected)
    np.testing.assert_array_equal(log[count:], -1.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_program_does_every_number_of_steps_of_a_bucket_as_one_of_its_own_does(solver) -> None:
    traces = []

    def velocity(x, sigma, evaluation, memory):
        traces.append(None)
        return jnp.sin(3 * x) + sigma, memory

    def solve(sigmas, steps):
        return sample(velocity, noise, sigmas, steps, solver)[0]

    noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    draw = jax.jit(solve)
    found = [draw(padded_sigmas(steps, 3.0), steps) for steps in (1, 2, 7, 32)]
    assert draw._cache_size() == 1
    # The network stands in the program once, for Heun's method too, and is compiled once. (The loop may trace its body
    # more than once while the program is built.)
    bodies = str(jax.make_jaxpr(solve)(padded_sigmas(7, 3.0), 7)).count("= sin")
    assert bodies == 1
    before = len(traces)
    draw(padded_sigmas(5, 3.0), 5)
    assert len(traces) == before
    assert len({float(x.sum()) for x in found}) == len(found)
    # Padding is never looked at: other lengths, and rubbish in place of the zeros, give the very same numbers.
    for steps, expected in zip((1, 2, 7, 32), found, strict=True):
        exact = padded_sigmas(steps, 3.0)[: steps + 1]
        np.testing.assert_array_equal(draw(exact, steps), expected)
        np.testing.assert_array_equal(draw(np.append(exact, np.full(32 - steps, np.nan, np.float32)), steps), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_is_updated_in_place(solver) -> None:
    def velocity(x, sigma, evaluation, memory):
        memory = memory.at[evaluation].set(x.mean())
        return x * memory[evaluation, 0], memory

    def draw(noise, memory, sigmas, steps):
        return sample(velocity, noise, sigmas, steps, solver, memory)

    memory = jnp.zeros((64, 4096))
    arguments = jnp.ones((2, 2, 1)), memory, padded_sigmas(4, 1.0), jnp.int32(4)
    compiled = jax.jit(draw, donate_argnums=1).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < memory.nbytes / 10


def test_levels_fall_from_one_to_zero_and_the_shift_raises_them() -> None:
    plain, shifted = euler_sigmas(10, 1.0), euler_sigmas(10, 3.0)
    assert plain[0] == shifted[0] == 1.0
    assert plain[-1] == shifted[-1] == 0.0
    assert (np.diff(plain) < 0).all()
    assert (np.diff(shifted) < 0).all()
    assert (shifted[1:-1] > plain[1:-1]).all()
    assert shift_sigma(np.float32(0.5), 3.0) == np.float32(0.75)


def test_padded_levels_are_the_levels_then_zeros_up_to_the_next_bucket() -> None:
    for steps, length in ((1, 32), (32, 32), (33, 128), (128, 128), (129, 1000), (1000, 1000), (1001, 1001)):
        padded = padded_sigmas(steps, 3.0)
        assert padded.shape == (length + 1,)
        assert padded.dtype == np.float32
        np.testing.assert_array_equal(padded[: steps + 1], euler_sigmas(steps, 3.0))
        assert not padded[steps:].any()
        assert np.count_nonzero(padded) == steps
    assert STEP_BUCKETS == (32, 128, 1000)


def test_bad_steps_shift_and_solver_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        padded_sigmas(0, 1.0)
    with pytest.raises(ValueError, match=r"shift=0.0: must be positive"):
        euler_sigmas(4, 0.0)
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"steps={steps}: must be 1 to 3"):
            sample(by_hand, jnp.ones((1, 1, 1)), LEVELS, steps)
    with pytest.raises(ValueError, match=r"solver 'ddim': must be one of euler, heun, dpm\+\+"):
        evaluations("ddim", 3)  # type: ignore[arg-type]


def test_noise_belongs_to_the_item_and_not_to_its_place() -> None:
    shape = (4, 4, 2)
    whole = initial_noise(seed_words(3), jnp.arange(6).reshape(2, 3), shape)
    assert whole.shape == (2, 3, *shape)
    shuffled = initial_noise(seed_words(3), jnp.array([5, 0, 4]), shape)
    np.testing.assert_array_equal(shuffled, whole.reshape(6, *shape)[jnp.array([5, 0, 4])])
    np.testing.assert_array_equal(
        jax.jit(initial_noise, static_argnums=2)(seed_words(3), jnp.array([2]), shape)[0], whole[0, 2]
    )


def test_noise_differs_between_items_and_seeds_and_is_standard_normal() -> None:
    noise = np.asarray(initial_noise(seed_words(0), jnp.arange(8), (32, 32, 4)))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1.0) < 0.02
    flat = noise.reshape(8, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.08
    assert np.abs(noise - np.asarray(initial_noise(seed_words(1), jnp.arange(8), (32, 32, 4)))).mean() > 1.0
