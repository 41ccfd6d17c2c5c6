"""Rectified flow, its loss, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion.flow import (
    change_weight,
    flow_loss,
    interpolate,
    predicted_clean,
    sample_drops,
    sample_sigma,
    velocity_target,
)
from genaffect_jax.diffusion.guidance import branch_drops, combine, guided, repeat_branches


def pictures(seed: int, *batch: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (*batch, 2, 3, 4))


def test_path_runs_from_data_to_noise_at_constant_velocity() -> None:
    clean, noise = pictures(0, 2, 3), pictures(1, 2, 3)
    np.testing.assert_array_equal(interpolate(clean, noise, jnp.zeros((2, 3))), clean)
    np.testing.assert_array_equal(interpolate(clean, noise, jnp.ones((2, 3))), noise)
    sigma = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    noisy, velocity = interpolate(clean, noise, sigma), velocity_target(clean, noise)
    step = interpolate(clean, noise, sigma + 0.05) - noisy
    np.testing.assert_allclose(step, 0.05 * velocity, atol=1e-6)
    np.testing.assert_allclose(predicted_clean(noisy, velocity, sigma), clean, atol=1e-5)
    np.testing.assert_allclose(noisy[1, 2], 0.1 * clean[1, 2] + 0.9 * noise[1, 2], atol=1e-6)


def test_sigma_is_logit_normal_and_shifted() -> None:
    flow = FlowConfig(logit_mean=0.5, logit_std=0.7, shift=3.0)
    sigma = np.asarray(sample_sigma(jax.random.key(0), (20000,), flow), np.float64)
    assert ((sigma > 0) & (sigma < 1)).all()
    unshifted = sigma / (3.0 - 2.0 * sigma)
    logit = np.log(unshifted / (1.0 - unshifted))
    assert abs(logit.mean() - 0.5) < 0.02
    assert abs(logit.std() - 0.7) < 0.02


def test_identity_expression_and_text_drop_independently_at_their_rates() -> None:
    flow = FlowConfig(drop_identity=0.3, drop_expression=0.1, drop_text=0.2, drop_all=0.0)
    identity, expression, text = sample_drops(jax.random.key(0), 20000, 2, flow)
    assert abs(identity.mean() - 0.3) < 0.02
    assert abs(expression.mean() - 0.1) < 0.01
    assert abs(text.mean() - 0.2) < 0.01
    assert abs((identity[:, None] & expression).mean() - 0.03) < 0.006
    assert abs((identity[:, None] & text).mean() - 0.06) < 0.006
    assert abs((expression & text).mean() - 0.02) < 0.006


def test_whole_groups_lose_everything_at_their_own_rate_beside_the_independent_drops() -> None:
    alone = FlowConfig(drop_identity=0.0, drop_expression=0.0, drop_text=0.0, drop_all=0.2)
    identity, expression, text = sample_drops(jax.random.key(0), 20000, 2, alone)
    assert abs(identity.mean() - 0.2) < 0.01
    np.testing.assert_array_equal(expression, np.repeat(identity[:, None], 2, axis=1))
    np.testing.assert_array_equal(text, expression)
    # On top of the others: 1 - 0.8 * 0.7 of the groups lose their identity; beside the groups that lose everything,
    # the three are as independent as before.
    both = FlowConfig(drop_identity=0.3, drop_expression=0.1, drop_text=0.2, drop_all=0.2)
    identity, expression, text = sample_drops(jax.random.key(0), 20000, 2, both)
    assert abs(identity.mean() - 0.44) < 0.02
    assert abs(expression.mean() - 0.28) < 0.01
    assert abs(text.mean() - 0.36) < 0.01
    assert abs((identity[:, None] & expression & text).mean() - (0.2 + 0.8 * 0.3 * 0.1 * 0.2)) < 0.01
    assert abs((expression & text).mean() - (0.2 + 0.8 * 0.1 * 0.2)) < 0.01
    assert abs((identity[:, None] & ~expression).mean() - 0.8 * 0.3 * 0.9) < 0.01


def test_loss_is_a_sum_and_a_count_that_add_up_over_parts() -> None:
    velocity, target = pictures(0, 4, 2), pictures(1, 4, 2)
    total, count = flow_loss(velocity, target)
    np.testing.assert_allclose(total / count, jnp.square(velocity - target).mean(), rtol=1e-6)
    parts = [flow_loss(velocity[s], target[s]) for s in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(sum(p[0] for p in parts), total, rtol=1e-6)
    assert sum(p[1] for p in parts) == count == velocity.size


def test_masked_items_count_neither_in_the_sum_nor_in_the_count() -> None:
    velocity, target = pictures(0, 4, 2), pictures(1, 4, 2)
    mask = jnp.array([[True, False], [True, True], [False, False], [False, True]])
    total, count = flow_loss(velocity.at[2].set(1e3), target, mask)
    expected, numbers = flow_loss(velocity[mask], target[mask])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == numbers == 4 * 24


def test_loss_is_float32_for_bfloat16_velocities() -> None:
    total, count = flow_loss(pictures(0, 4).astype(jnp.bfloat16), pictures(1, 4).astype(jnp.bfloat16))
    assert total.dtype == count.dtype == jnp.float32


def test_decoupled_guidance_is_its_formula_and_each_scale_moves_its_own_difference() -> None:
    base, identity, full = (pictures(i, 2, 3) for i in range(3))
    stacked = jnp.stack([base, identity, full], axis=1).reshape(6, 3, 2, 3, 4)
    found = combine(stacked, "decoupled", 2.0, 5.0)
    np.testing.assert_allclose(found, base + 2.0 * (identity - base) + 5.0 * (full - identity), atol=1e-5)
    np.testing.assert_allclose(combine(stacked, "decoupled", 1.0, 1.0), full, atol=1e-5)
    np.testing.assert_allclose(combine(stacked, "decoupled", 1.0, 0.0), identity, atol=1e-5)
    np.testing.assert_allclose(combine(stacked, "decoupled", 0.0, 0.0), base, atol=1e-5)


def test_joint_guidance_extrapolates_from_no_condition_to_all() -> None:
    base, full = pictures(0, 2, 3), pictures(1, 2, 3)
    stacked = jnp.stack([base, full], axis=1).reshape(4, 3, 2, 3, 4)
    np.testing.assert_allclose(combine(stacked, "joint", 9.0, 4.0), base + 4.0 * (full - base), atol=1e-5)


def test_branches_drop_what_their_place_in_the_formula_says() -> None:
    identity, expression = branch_drops("decoupled", groups=2, expressions=3)
    np.testing.assert_array_equal(identity, [True, False, False] * 2)
    np.testing.assert_array_equal(expression, np.repeat([[True], [True], [False]] * 2, 3, axis=1))
    assert not any(x.any() for x in branch_drops("none", 2, 3))
    np.testing.assert_array_equal(branch_drops("joint", 1, 1)[1], [[True], [False]])
    with pytest.raises(ValueError, match="'both': must be one of none, joint, decoupled"):
        branch_drops("both", 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["none", "joint", "decoupled"])
def test_a_model_deaf_to_its_conditions_is_not_changed_by_guidance(mode) -> None:
    latents = pictures(0, 2, 3)
    velocity = guided(lambda x, sigma, _, memory: (jnp.sin(x) * sigma, memory), mode, 3.0, 7.0)
    found, _ = velocity(latents, jnp.float32(0.5), jnp.int32(0), None)
    np.testing.assert_allclose(found, 0.5 * jnp.sin(latents), atol=1e-5)
    assert repeat_branches(latents, mode).shape[0] % 2 == 0


def test_guidance_acts_inside_its_noise_interval_only() -> None:
    drops = branch_drops("decoupled", 2, 3)

    def velocity(latents, sigma, evaluation, memory):
        found = latents * 0 + (~drops[0][:, None] * 1.0 + ~drops[1] * 10.0)[..., None, None, None]
        return found, memory + latents.shape[0]

    def full(latents, sigma, evaluation, memory):
        return latents * 0 + 11.0, memory + latents.shape[0]

    limited = guided(velocity, "decoupled", 2.0, 3.0, interval=(0.2, 0.8), velocity_full=full)
    for sigma, expected, groups in ((0.1, 11.0, 2), (0.2, 32.0, 6), (0.5, 32.0, 6), (0.8, 32.0, 6), (0.9, 11.0, 2)):
        found, evaluated = limited(pictures(0, 2, 3), jnp.float32(sigma), jnp.int32(0), jnp.int32(0))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert evaluated == groups  # outside, the other branches are not even computed
    with pytest.raises(ValueError, match="needs velocity_full"):
        guided(velocity, "decoupled", interval=(0.2, 0.8))


def test_changed_latents_weigh_more_and_an_equal_picture_weighs_one() -> None:
    reference = jnp.zeros((1, 4, 4, 2))
    target = jnp.zeros((1, 2, 4, 4, 2)).at[0, 0, 1, 2].set(3.0)
    weight = change_weight(target, reference, 2.0)
    assert weight.shape == (1, 2, 4, 4, 1)
    np.testing.assert_allclose(weight[0, 0, 1, 2], 1 + 2 * 16, rtol=1e-4)  # all of the change is in one of 16 pixels
    np.testing.assert_array_equal(weight[0, 0, 0, 0], 1.0)
    np.testing.assert_array_equal(weight[0, 1], 1.0)


def test_a_weight_of_latent_numbers_gives_the_weighted_mean() -> None:
    velocity, target = jnp.array([1.0, 2.0]).reshape(1, 1, 1, 2, 1), jnp.zeros((1, 1, 1, 2, 1))
    total, count = flow_loss(velocity, target, jnp.array([3.0, 1.0]).reshape(1, 1, 1, 2, 1))
    assert (float(total), float(count)) == (3.0 * 1 + 1.0 * 4, 4.0)
