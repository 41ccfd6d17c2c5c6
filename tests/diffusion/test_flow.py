"""Rectified flow, its loss, and guidance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion.flow import (
    change_weight,
    flow_loss,
    interpolate,
    predicted_x0,
    sample_drops,
    sample_sigma,
    sigma_quantile,
    velocity_target,
)
from genaffect_jax.diffusion.guidance import GUIDANCE_BRANCHES, branch_drops, combine, guided, repeat_branches
from genaffect_jax.diffusion.sampler import sample
from genaffect_jax.diffusion.schedule import padded_sigmas


def images(seed: int, *batch: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (*batch, 2, 3, 4))


def test_path_runs_from_data_to_noise_at_constant_velocity() -> None:
    clean, noise = images(0, 2, 3), images(1, 2, 3)
    np.testing.assert_array_equal(interpolate(clean, noise, jnp.zeros((2, 3))), clean)
    np.testing.assert_array_equal(interpolate(clean, noise, jnp.ones((2, 3))), noise)
    sigma = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    noisy, velocity = interpolate(clean, noise, sigma), velocity_target(clean, noise)
    step = interpolate(clean, noise, sigma + 0.05) - noisy
    np.testing.assert_allclose(step, 0.05 * velocity, atol=1e-6)
    np.testing.assert_allclose(predicted_x0(noisy, velocity, sigma), clean, atol=1e-5)
    np.testing.assert_allclose(noisy[1, 2], 0.1 * clean[1, 2] + 0.9 * noise[1, 2], atol=1e-6)


def test_sigma_is_logit_normal_and_shifted() -> None:
    flow = FlowConfig(logit_mean=0.5, logit_std=0.7, shift=3.0)
    sigma = np.asarray(sample_sigma(jax.random.key(0), (20000,), flow), np.float64)
    assert ((sigma > 0) & (sigma < 1)).all()
    unshifted = sigma / (3.0 - 2.0 * sigma)
    logit = np.log(unshifted / (1.0 - unshifted))
    assert abs(logit.mean() - 0.5) < 0.02
    assert abs(logit.std() - 0.7) < 0.02


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.0, 1.29, 1.75])
def test_the_mode_distribution_has_the_density_of_sd3_and_scale_zero_is_uniform(scale: float) -> None:
    flow = FlowConfig(timesteps="mode", mode_scale=scale)
    sigma = np.asarray(sample_sigma(jax.random.key(1), (200_000,), flow), np.float64)
    assert ((sigma > 0) & (sigma < 1)).all()
    u = np.linspace(0, 1, 100_001)
    curve = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    # The share below a level is the part of u whose curve lies below it.
    for level in (0.1, 0.3, 0.5, 0.8):
        assert abs((sigma < level).mean() - (curve < level).mean()) < 5e-3
    if scale == 0:
        np.testing.assert_allclose(np.quantile(sigma, [0.25, 0.5, 0.9]), [0.25, 0.5, 0.9], atol=5e-3)


@pytest.mark.parametrize("timesteps", ["logit_normal", "uniform", "mode"])
def test_quantiles_are_those_of_the_levels_drawn(timesteps) -> None:
    flow = FlowConfig(timesteps=timesteps, logit_mean=0.5, logit_std=0.8, shift=3.0)
    drawn = sample_sigma(jax.random.key(2), (200_000,), flow)
    ranks = np.array([0.01, 0.2, 0.5, 0.77, 0.99])
    np.testing.assert_allclose(sigma_quantile(jnp.asarray(ranks), flow), np.quantile(drawn, ranks), atol=5e-3)


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
    velocity, target = images(0, 4, 2), images(1, 4, 2)
    total, count = flow_loss(velocity, target)
    np.testing.assert_allclose(total / count, jnp.square(velocity - target).mean(), rtol=1e-6)
    parts = [flow_loss(velocity[s], target[s]) for s in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(sum(p[0] for p in parts), total, rtol=1e-6)
    assert sum(p[1] for p in parts) == count == velocity.size


def test_masked_items_count_neither_in_the_sum_nor_in_the_count() -> None:
    velocity, target = images(0, 4, 2), images(1, 4, 2)
    mask = jnp.array([[True, False], [True, True], [False, False], [False, True]])
    total, count = flow_loss(velocity.at[2].set(1e3), target, mask)
    expected, numbers = flow_loss(velocity[mask], target[mask])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == numbers == 4 * 24


def test_loss_is_float32_for_bfloat16_velocities() -> None:
    total, count = flow_loss(images(0, 4).astype(jnp.bfloat16), images(1, 4).astype(jnp.bfloat16))
    assert total.dtype == count.dtype == jnp.float32


def test_decoupled_guidance_is_its_formula_and_each_scale_moves_its_own_difference() -> None:
    base, identity, full = (images(i, 2, 3) for i in range(3))
    stacked = jnp.stack([base, identity, full], axis=1).reshape(6, 3, 2, 3, 4)
    found = combine(stacked, "decoupled", 2.0, 5.0)
    np.testing.assert_allclose(found, base + 2.0 * (identity - base) + 5.0 * (full - identity), atol=1e-5)
    np.testing.assert_allclose(combine(stacked, "decoupled", 1.0, 1.0), full, atol=1e-5)
    np.testing.assert_allclose(combine(stacked, "decoupled", 1.0, 0.0), identity, atol=1e-5)
    np.testing.assert_allclose(combine(stacked, "decoupled", 0.0, 0.0), base, atol=1e-5)


def test_joint_guidance_extrapolates_from_no_condition_to_all() -> None:
    base, full = images(0, 2, 3), images(1, 2, 3)
    stacked = jnp.stack([base, full], axis=1).reshape(4, 3, 2, 3, 4)
    np.testing.assert_allclose(combine(stacked, "joint", 9.0, 4.0), base + 4.0 * (full - base), atol=1e-5)


def test_expression_guidance_is_decoupled_guidance_with_an_identity_scale_of_1() -> None:
    base, identity, full = (images(i, 2, 3) for i in range(3))
    three = jnp.stack([base, identity, full], axis=1).reshape(6, 3, 2, 3, 4)
    two = jnp.stack([identity, full], axis=1).reshape(4, 3, 2, 3, 4)
    found = combine(two, "expression", 9.0, 5.0)
    np.testing.assert_allclose(found, combine(three, "decoupled", 1.0, 5.0), atol=1e-5)
    for mode, first in (("expression", 0), ("decoupled", 1)):
        identity, expression = branch_drops(mode, 1, 1)
        np.testing.assert_array_equal(identity[first:], [False, False])
        np.testing.assert_array_equal(expression[first:], [[True], [False]])


def test_branches_drop_what_their_place_in_the_formula_says() -> None:
    identity, expression = branch_drops("decoupled", groups=2, expressions=3)
    np.testing.assert_array_equal(identity, [True, False, False] * 2)
    np.testing.assert_array_equal(expression, np.repeat([[True], [True], [False]] * 2, 3, axis=1))
    assert not any(x.any() for x in branch_drops("none", 2, 3))
    np.testing.assert_array_equal(branch_drops("joint", 1, 1)[1], [[True], [False]])
    with pytest.raises(ValueError, match="'both': must be one of none, joint, expression, decoupled"):
        branch_drops("both", 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["none", "joint", "expression", "decoupled"])
def test_a_model_deaf_to_its_conditions_is_not_changed_by_guidance(mode) -> None:
    latents = images(0, 2, 3)
    velocity = guided(lambda x, sigma, evaluation, memory: (jnp.sin(x) * sigma, memory), mode, 3.0, 7.0)
    found, _ = velocity(latents, jnp.float32(0.5), jnp.int32(0), None)
    np.testing.assert_allclose(found, 0.5 * jnp.sin(latents), atol=1e-5)
    assert repeat_branches(latents, mode).shape[0] % 2 == 0


def full_branch(x, mode):
    """The last branch of every group."""
    count = len(GUIDANCE_BRANCHES[mode])
    return x[count - 1 :: count]


def test_the_last_branch_drops_nothing() -> None:
    x = images(0, 2, 3)
    for mode in ("none", "joint", "expression", "decoupled"):
        identity, expression = branch_drops(mode, 2, 3)
        assert not full_branch(identity, mode).any()
        assert not full_branch(expression, mode).any()
        assert full_branch(expression, mode).shape == (2, 3)
        np.testing.assert_array_equal(full_branch(repeat_branches(x, mode), mode), x)


def conditional_velocities(mode, groups, expressions):
    """Velocities that depend on the conditions; their memory counts the groups that were evaluated."""
    identity, expression = branch_drops(mode, groups, expressions)
    weight = (~identity[:, None] * 1.0 + ~expression * 10.0)[..., None, None, None]

    def velocity(latents, sigma, evaluation, memory, weight=weight):
        return weight * jnp.cos(latents), memory + latents.shape[0]

    return velocity, partial(velocity, weight=full_branch(weight, mode))


@pytest.mark.parametrize("mode", ["joint", "decoupled"])
def test_outside_the_guidance_interval_one_branch_is_evaluated_and_leads(mode) -> None:
    latents, branches = images(0, 2, 3), {"joint": 2, "decoupled": 3}[mode]
    velocity, full = conditional_velocities(mode, 2, 3)
    everywhere, nowhere = guided(velocity, mode, 2.0, 3.0), guided(full, "none")

    @jax.jit
    def limited(sigma, low, high):
        found = guided(velocity, mode, jnp.float32(2.0), 3.0, (low, high), full)
        return found(latents, sigma, jnp.int32(0), jnp.int32(0))

    for sigma, reference, count in (
        (0.19, nowhere, 2),
        (0.2, everywhere, 2 * branches),
        (0.5, everywhere, 2 * branches),
        (0.8, everywhere, 2 * branches),
        (0.81, nowhere, 2),
    ):
        sigma = jnp.float32(sigma)
        found, evaluated = limited(sigma, jnp.float32(0.2), jnp.float32(0.8))
        expected, counted = reference(latents, sigma, jnp.int32(0), jnp.int32(0))
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=f"sigma {sigma}")
        assert evaluated == counted == count
    assert np.abs(everywhere(latents, 0.5, 0, 0)[0] - nowhere(latents, 0.5, 0, 0)[0]).max() > 1
    limited(jnp.float32(0.5), jnp.float32(0.6), jnp.float32(1.0))
    assert limited._cache_size() == 1


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm++"])
def test_a_guidance_interval_saves_branches_over_a_whole_run(solver) -> None:
    velocity, full = conditional_velocities("decoupled", 2, 3)
    batches: list[int] = []

    def watched(inner):
        def counting(latents, *rest):
            jax.debug.callback(lambda: batches.append(latents.shape[0]))  # runs when the branch is taken, not traced
            return inner(latents, *rest)

        return counting

    @jax.jit
    def draw(low, high):
        follow = guided(watched(velocity), "decoupled", 2.0, 3.0, (low, high), watched(full))
        return sample(follow, images(0, 2, 3), padded_sigmas(10, 1.0), 10, solver, jnp.int32(0))

    # Of the ten levels 1, 0.889, ... 0.112, 0.001 four are between 0.3 and 0.7; Heun's method visits each twice.
    inside, total = {"heun": (8, 19)}.get(solver, (4, 10))
    for limits, expected in (((0.3, 0.7), inside), ((0.0, 1.0), total), ((2.0, 3.0), 0)):
        batches.clear()
        latents, evaluated = jax.block_until_ready(draw(*map(jnp.float32, limits)))
        jax.effects_barrier()
        assert evaluated == sum(batches) == 6 * expected + 2 * (total - expected)
        assert (batches.count(6), batches.count(2)) == (expected, total - expected)
        assert np.isfinite(latents).all()


def test_without_an_interval_the_program_has_no_second_network() -> None:
    velocity, full = conditional_velocities("decoupled", 2, 3)

    def program(mode, interval):
        follow = guided(velocity, mode, 2.0, 3.0, interval, full)
        return str(jax.make_jaxpr(lambda sigma: follow(images(0, 2, 3), sigma, 0, 0))(0.5))

    assert program("decoupled", (0.2, 0.8)).count("= cos") == 2
    for mode, interval in (("decoupled", None), ("none", None), ("none", (0.2, 0.8))):
        if mode == "none":
            velocity = full
        assert "cond" not in program(mode, interval)
        assert program(mode, interval).count("= cos") == 1


def test_an_interval_needs_the_velocity_of_the_full_branch() -> None:
    velocity, _ = conditional_velocities("joint", 2, 3)
    with pytest.raises(ValueError, match="guidance interval: needs velocity_full"):
        guided(velocity, "joint", interval=(0.2, 0.8))
    with pytest.raises(ValueError, match="'both': must be one of none, joint, expression, decoupled"):
        guided(velocity, "both")  # type: ignore[arg-type]


def test_changed_latents_weigh_more_and_an_equal_image_weighs_one() -> None:
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
