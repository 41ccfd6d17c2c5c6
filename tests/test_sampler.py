"""The Euler schedule and sampler, and the noise of an item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.diffusion.sampler import item_noise, sample
from genaffect_jax.diffusion.schedule import euler_sigmas, shift_sigma


def test_trajectory_equals_one_computed_by_hand() -> None:
    # v = 2 x + sigma over the levels 1, 0.5, 0.25, 0, from x = 1:
    # 1    + (0.5 - 1)    * (2 * 1     + 1)    = -0.5
    # -0.5 + (0.25 - 0.5) * (2 * -0.5  + 0.5)  = -0.375
    # -0.375 + (0 - 0.25) * (2 * -0.375 + 0.25) = -0.25
    found, _ = sample(
        lambda x, sigma, _, memory: (2.0 * x + sigma, memory), jnp.ones((1, 1, 1)), jnp.array([1.0, 0.5, 0.25, 0.0]), 3
    )
    np.testing.assert_allclose(found, -0.25, rtol=1e-6)


def test_straight_paths_end_at_the_data_whatever_the_steps() -> None:
    noise, clean = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2)), jnp.full((2, 3, 4, 4, 2), 0.7)
    for steps in (1, 5):
        found, _ = sample(lambda x, s, _, memory: (noise - clean, memory), noise, euler_sigmas(steps, 3.0), steps)
        np.testing.assert_allclose(found, clean, atol=1e-5)


def test_levels_fall_from_one_to_zero_and_the_shift_raises_them() -> None:
    plain, shifted = euler_sigmas(10, 1.0), euler_sigmas(10, 3.0)
    assert plain[0] == shifted[0] == 1.0
    assert plain[-1] == shifted[-1] == 0.0
    assert (np.diff(plain) < 0).all()
    assert (np.diff(shifted) < 0).all()
    assert (shifted[1:-1] > plain[1:-1]).all()
    assert shift_sigma(np.float32(0.5), 3.0) == np.float32(0.75)


def test_bad_steps_and_shift_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        euler_sigmas(0, 1.0)
    with pytest.raises(ValueError, match=r"shift=0.0: must be positive"):
        euler_sigmas(4, 0.0)


def test_noise_belongs_to_the_item_and_not_to_its_place() -> None:
    shape = (4, 4, 2)
    whole = item_noise(3, jnp.arange(6).reshape(2, 3), shape)
    assert whole.shape == (2, 3, *shape)
    shuffled = item_noise(3, jnp.array([5, 0, 4]), shape)
    np.testing.assert_array_equal(shuffled, whole.reshape(6, *shape)[jnp.array([5, 0, 4])])
    np.testing.assert_array_equal(jax.jit(item_noise, static_argnums=2)(3, jnp.array([2]), shape)[0], whole[0, 2])


def test_noise_differs_between_items_and_seeds_and_is_standard_normal() -> None:
    noise = np.asarray(item_noise(0, jnp.arange(8), (32, 32, 4)))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1.0) < 0.02
    flat = noise.reshape(8, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.08
    assert np.abs(noise - np.asarray(item_noise(1, jnp.arange(8), (32, 32, 4)))).mean() > 1.0
