"""Condition projectors: padding, order, dropout and the projection of conditions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genaffect_jax.config import ConditioningConfig, MMDiTConfig
from genaffect_jax.models.mmdit.condition_projectors import ExpressionProjector, IdentityProjector
from genaffect_jax.models.mmdit.model import MMDiT

CONFIG = MMDiTConfig(
    sample_size=4,
    num_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=0,
    in_channels=4,
    pos_embed_max_size=2,
    register_tokens=1,
)
CONDITIONING = ConditioningConfig(expression_width=6, expression_tokens=3, identity_layers=2)
RESAMPLER = ConditioningConfig(identity_tokens=3, identity_embedding=5, identity_layers=2)
L, D = 4, 32


def shaken(model: Any) -> Any:
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), params)
    return nnx.merge(graph, params, rest)


@functools.cache
def identity_tokens() -> IdentityProjector:
    return shaken(IdentityProjector(CONFIG, CONDITIONING, rngs=nnx.Rngs(0)))


@functools.cache
def resampler() -> IdentityProjector:
    return shaken(IdentityProjector(CONFIG, RESAMPLER, rngs=nnx.Rngs(0)))


@functools.cache
def expression_tokens() -> ExpressionProjector:
    return shaken(ExpressionProjector(D, CONDITIONING, rngs=nnx.Rngs(0)))


def positions() -> jax.Array:
    return jax.random.normal(jax.random.key(9), (L, D))


def references(seed: int, groups: int = 2, count: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (groups, count, 4, 4, 4))


def test_padded_references_change_nothing() -> None:
    reference = references(0)
    padded = jnp.concatenate([reference, 100.0 * references(1, count=1)], axis=1)
    mask = jnp.array([[True, True, False]] * 2)
    tokens, token_mask = identity_tokens()(reference, jnp.ones((2, 2), bool), positions())
    padded_tokens, padded_mask = identity_tokens()(padded, mask, positions())
    np.testing.assert_allclose(padded_tokens[:, : 2 * L], tokens, atol=1e-5)
    np.testing.assert_array_equal(padded_mask[:, : 2 * L], token_mask)
    assert not padded_mask[:, 2 * L :].any()


def test_order_of_references_only_reorders_tokens() -> None:
    reference, mask = references(0), jnp.ones((2, 2), bool)
    tokens, _ = identity_tokens()(reference, mask, positions())
    swapped, _ = identity_tokens()(reference[:, ::-1], mask, positions())
    np.testing.assert_allclose(swapped, jnp.roll(tokens, L, axis=1), atol=1e-5)


def test_a_dropped_group_and_one_without_references_get_the_null_token_and_nothing_of_the_image() -> None:
    reference = references(0, groups=3)
    mask = jnp.array([[True, True], [True, False], [False, False]])
    tokens, token_mask = identity_tokens()(reference, mask, positions(), jnp.array([False, True, False]))
    null = identity_tokens().null[...]
    for group in (1, 2):
        np.testing.assert_array_equal(tokens[group], jnp.broadcast_to(null, (2 * L, D)))
        assert token_mask[group].all()
    assert jnp.abs(tokens[0] - null).min(axis=0).max() > 0.1


def embeddings(seed: int, groups: int = 2, count: int = 2) -> jax.Array:
    x = jax.random.normal(jax.random.key(seed), (groups, count, 5))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def test_the_resampler_makes_its_tokens_of_any_number_of_references_in_any_order() -> None:
    reference, faces, mask = references(0), embeddings(0), jnp.ones((2, 2), bool)
    tokens, token_mask = resampler()(reference, mask, positions(), embedding=faces)
    assert tokens.shape == (2, 3, D)
    assert token_mask is None
    swapped, _ = resampler()(reference[:, ::-1], mask, positions(), embedding=faces[:, ::-1])
    np.testing.assert_allclose(swapped, tokens, atol=1e-5)
    alone, _ = resampler()(reference[:, :1], mask[:, :1], positions(), embedding=faces[:, :1])
    assert alone.shape == tokens.shape
    assert jnp.abs(alone - tokens).max() > 1e-2
    # Whose embedding belongs to which image is not said: both are there, and each token may look at either.
    crossed, _ = resampler()(reference, mask, positions(), embedding=faces[:, ::-1])
    np.testing.assert_allclose(crossed, tokens, atol=1e-5)


def test_padded_references_change_nothing_in_the_resampler_whatever_they_hold() -> None:
    reference, faces = references(0), embeddings(0)
    mask = jnp.array([[True, True, False]] * 2)

    def padded(seed: int) -> jax.Array:
        return resampler()(
            jnp.concatenate([reference, 100.0 * references(seed, count=1)], axis=1),
            mask,
            positions(),
            embedding=jnp.concatenate([faces, embeddings(seed, count=1)], axis=1),
        )[0]

    np.testing.assert_array_equal(padded(1), padded(2))
    tokens, _ = resampler()(reference, jnp.ones((2, 2), bool), positions(), embedding=faces)
    np.testing.assert_allclose(padded(1), tokens, atol=1e-5)


def test_a_dropped_group_and_one_without_references_get_only_null_tokens_of_the_resampler() -> None:
    reference, faces = references(0, groups=3), embeddings(0, groups=3)
    mask = jnp.array([[True, True], [True, False], [False, False]])
    tokens, _ = resampler()(reference, mask, positions(), jnp.array([False, True, False]), embedding=faces)
    null = resampler().null[...]
    np.testing.assert_array_equal(tokens[1:], jnp.broadcast_to(null, (2, 3, D)))
    assert jnp.abs(tokens[0] - null).min(axis=0).max() > 0.1


@pytest.mark.parametrize("make", [identity_tokens, resampler])
def test_gradients_reach_every_parameter_of_the_token_maker(make) -> None:
    graph, params, rest = nnx.split(make(), nnx.Param, ...)
    faces = embeddings(0) if make is resampler else None

    @jax.jit
    @jax.grad
    def gradients(params: Any) -> jax.Array:
        maker = nnx.merge(graph, params, rest)
        tokens, _ = maker(references(0), jnp.ones((2, 2), bool), positions(), jnp.array([True, False]), embedding=faces)
        return (tokens * jax.random.normal(jax.random.key(1), tokens.shape)).sum()

    for path, gradient in nnx.to_flat_state(gradients(params)):
        assert jnp.abs(gradient[...]).max() > 0, path


def test_a_new_resampler_tells_references_and_faces_apart() -> None:
    maker, mask = IdentityProjector(CONFIG, RESAMPLER, rngs=nnx.Rngs(0)), jnp.ones((2, 2), bool)
    tokens, _ = maker(references(0), mask, positions(), embedding=embeddings(0))
    for changed in ((references(1), embeddings(0)), (references(0), embeddings(1))):
        other, _ = maker(changed[0], mask, positions(), embedding=changed[1])
        assert jnp.abs(other - tokens).max() > 0.05


def test_a_missing_and_a_needless_face_embedding_are_named() -> None:
    reference, mask = references(0), jnp.ones((2, 2), bool)
    with pytest.raises(ValueError, match="the references' embedding is missing"):
        resampler()(reference, mask, positions())
    with pytest.raises(ValueError, match="the references' embedding is given, but the model takes none"):
        identity_tokens()(reference, mask, positions(), embedding=embeddings(0))


def test_new_identity_layers_leave_the_embedded_patches_alone() -> None:
    reference, mask = references(0, count=1), jnp.ones((2, 1), bool)
    deep = IdentityProjector(CONFIG, CONDITIONING, rngs=nnx.Rngs(0))
    flat = IdentityProjector(CONFIG, ConditioningConfig(identity_layers=0), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(deep(reference, mask, positions())[0], flat(reference, mask, positions())[0], atol=1e-6)


def test_expression_tokens_follow_intensity_and_dropped_images_get_null_tokens() -> None:
    expression = jnp.zeros((1, 3, 6)).at[0, 1, 2].set(0.5).at[0, 2, 2].set(1.0)
    tokens = expression_tokens()(expression)
    half, full = (jnp.abs(tokens[0, i] - tokens[0, 0]).mean() for i in (1, 2))
    assert 0.2 * full < half < 0.8 * full
    dropped = expression_tokens()(expression, jnp.array([[False, True, False]]))
    np.testing.assert_array_equal(dropped[0, 1], expression_tokens().null[...])
    np.testing.assert_array_equal(dropped[0, [0, 2]], tokens[0, [0, 2]])


def test_conditions_are_each_blocks_own_projection_of_the_tokens() -> None:
    model = shaken(MMDiT(CONFIG, branches="decoupled", rngs=nnx.Rngs(0)))
    identity, _ = identity_tokens()(references(0), jnp.ones((2, 2), bool), positions())
    expression = expression_tokens()(jnp.ones((2, 3, 6)))
    conditions = model.project_conditions(identity_tokens=identity, expression_tokens=expression)
    assert conditions.identity is not None
    assert conditions.expression is not None
    for layer, segment in enumerate(model.segments):
        graph, state = nnx.split(segment.layers)
        block = nnx.merge(graph, jax.tree.map(lambda x: x[0], state))
        for found, expected in (
            (conditions.identity, block.identity(identity)),
            (conditions.expression, block.expression(expression)),
        ):
            np.testing.assert_allclose(found.key[layer], expected.key, atol=1e-5)
            np.testing.assert_allclose(found.value[layer], expected.value, atol=1e-5)


def test_the_denoising_call_projects_no_condition_again() -> None:
    model = MMDiT(CONFIG, branches="decoupled", rngs=nnx.Rngs(0))
    identity, mask = identity_tokens()(references(0), jnp.ones((2, 2), bool), positions())
    conditions = model.project_conditions(
        identity_tokens=identity, identity_mask=mask, expression_tokens=expression_tokens()(jnp.ones((2, 3, 6)))
    )
    values = jnp.ones((2, 3, 4, 4, 4)), jnp.full((2, 3), 0.5)
    for segment in model.segments:
        # Not even a broken projection may be noticed by the call.
        for branch in (segment.layers.identity, segment.layers.expression):
            branch.key.kernel[...] = jnp.full_like(branch.key.kernel[...], jnp.nan)
            branch.value.kernel[...] = jnp.full_like(branch.value.kernel[...], jnp.nan)
    assert jnp.isfinite(model(*values, conditions).prediction).all()
