"""Consistent attention against a dense mask in float64, and what a set may and may not share."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dense_attention import H, N, brute_force, error, random_tokens, streams

from genaffect_jax.kernels.attention import splash_attention, xla_attention
from genaffect_jax.models.mmdit.attention import QKV, KeyValue, attend, joint_attention
from genaffect_jax.models.mmdit.consistent_attention import (
    Tokens,
    anchor_pool,
    consistent_attention,
    copied_attention,
    merge,
)


@partial(jax.jit, static_argnums=3)
def program(image: QKV, text: QKV, tokens: Tokens, anchors: int) -> tuple[jax.Array, jax.Array]:
    return consistent_attention(image, text, tokens, anchor_pool(image, tokens, anchors), anchors=anchors)


def shared(image: QKV, text: QKV, tokens: Tokens, anchors: int) -> list[np.ndarray]:
    return [np.asarray(x) for x in program(image, text, tokens, anchors)]


@pytest.mark.parametrize("images", range(1, 10))
@pytest.mark.parametrize("fraction", [0.3, 0.5, 1.0])
def test_it_equals_a_dense_mask_in_float64(images: int, fraction: float) -> None:
    # Odd lengths, two groups of two guidance branches, with one image, half of them and all as anchors.
    sizes = itertools.cycle([(9, 3), (16, 5), (25, 1), (8, 4)])
    for (length, text), anchors in zip(sizes, sorted({1, (images + 1) // 2, images}), strict=False):
        image, words = streams(images, 4, images, length, text)
        tokens = random_tokens(length, length, fraction)
        found = shared(image, words, tokens, anchors)
        assert error(found, brute_force(image, words, tokens, anchors)) < 1e-5


@pytest.mark.parametrize("images", [2, 3, 5])
def test_with_copied_tokens_it_is_the_same_function_and_has_the_same_gradient(images: int) -> None:
    image, words = streams(images, 2, images, 9, 3)
    tokens = random_tokens(0, 9, 0.5)
    weights = np.random.default_rng(0).normal(size=(2, images, 12, N * H)).astype(np.float32)

    def merged(image: QKV, words: QKV) -> tuple[jax.Array, jax.Array]:
        return consistent_attention(image, words, tokens, anchor_pool(image, tokens, images), anchors=images)

    def copied(image: QKV, words: QKV) -> tuple[jax.Array, jax.Array]:
        return copied_attention(image, words, tokens)

    results = []
    for function in (merged, copied):

        def total(image: QKV, words: QKV, function=function) -> jax.Array:  # type: ignore[no-untyped-def]
            return (jnp.concatenate(function(image, words), axis=2) * weights).sum()

        results.append((function(image, words), jax.grad(total, argnums=(0, 1))(image, words)))
    for expected, found in zip(*(jax.tree.leaves(r) for r in results), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_large_scores_do_not_overflow_the_merge() -> None:
    image, words = streams(4, 1, 3, 9, 3)
    image = QKV(10.0 * image.query, 10.0 * image.key, image.value)
    tokens = random_tokens(0, 9, 0.5)
    # Scores beyond 88, where float32's exp ends; their own rounding is some 1e-5.
    assert error(shared(image, words, tokens, 3), brute_force(image, words, tokens, 3)) < 1e-4


def test_images_beside_an_earlier_pool_equal_those_beside_their_anchors() -> None:
    image, words = streams(5, 2, 6, 9, 3)
    tokens = random_tokens(1, 9, 0.5)
    together = shared(image, words, tokens, 2)
    pool = anchor_pool(image, tokens, 2)
    rest = [QKV(*(x[:, 2:] for x in stream)) for stream in (image, words)]
    alone = consistent_attention(*rest, tokens, pool, anchors=0)
    for found, expected in zip(alone, together, strict=True):
        np.testing.assert_allclose(found, expected[:, 2:], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 6), st.sampled_from([0.3, 0.5, 1.0]))
def test_permuting_a_set_permutes_its_images(data: st.DataObject, images: int, fraction: float) -> None:
    order = np.array(data.draw(st.permutations(range(images))))
    image, words = streams(images, 2, images, 9, 3)
    tokens = random_tokens(2, 9, fraction)
    found = shared(*(QKV(*(x[:, order] for x in s)) for s in (image, words)), tokens, images)
    for f, expected in zip(found, shared(image, words, tokens, images), strict=True):
        np.testing.assert_allclose(f, expected[:, order], atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(2, 5))
def test_groups_never_see_each_other(groups: int, changed: int, images: int) -> None:
    # Guidance branches are groups: the unconditional branch never sees the conditional one.
    changed %= groups
    image, words = streams(0, groups, images, 9, 3)
    mine = np.arange(groups)[:, None, None, None, None] == changed
    other = [QKV(*(np.where(mine, 7.0 - x, x) for x in s)) for s in (image, words)]
    tokens = random_tokens(3, 9, 0.5)
    for f, expected in zip(shared(*other, tokens, images), shared(image, words, tokens, images), strict=True):
        for group in range(groups):
            same = np.array_equal(f[group], expected[group])
            assert same == (group != changed)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_an_image_beside_anchors_does_not_depend_on_the_others(anchors: int, rest: int, chosen: int) -> None:
    image, words = streams(1, 2, anchors + rest, 9, 3)
    tokens = random_tokens(4, 9, 0.5)
    together = shared(image, words, tokens, anchors)
    pick = np.array([*range(anchors), anchors + chosen % rest])
    alone = shared(*(QKV(*(x[:, pick] for x in s)) for s in (image, words)), tokens, anchors)
    for f, expected in zip(alone, together, strict=True):
        np.testing.assert_allclose(f, expected[:, pick], atol=2e-6)


def test_merging_two_halves_of_the_keys_is_attention_to_all() -> None:
    query, key, value = (jax.random.normal(jax.random.key(i), (2, 3, n, N, H)) for i, n in enumerate((5, 9, 9)))
    halves = [attend(query, key[..., s, :, :], value[..., s, :, :], return_lse=True) for s in (np.s_[:4], np.s_[4:])]
    np.testing.assert_allclose(merge(*halves), attend(query, key, value), atol=2e-6)


def test_the_log_sum_exp_of_bfloat16_attention_is_float32() -> None:
    # Scores of hundreds: rounded to bfloat16 the log-sum-exp would be off by up to 1, and a merged weight by e.
    query, key = (40.0 * jax.random.normal(jax.random.key(i), (1, 64, N, H)).astype(jnp.bfloat16) for i in range(2))
    _, lse = attend(query, key, key, return_lse=True)
    scores = np.einsum("bqnh,bknh->bqnk", *(np.asarray(x, np.float64) for x in (query, key))) / np.sqrt(H)
    expected = np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)) + scores.max(-1)
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, expected, atol=1e-3)


@pytest.mark.parametrize(("length", "seen", "masked"), [(5, 7, False), (128, 256, False), (130, 200, True)])
def test_splash_attention_equals_xla(length: int, seen: int, masked: bool) -> None:
    # The TPU kernel, interpreted: head size 64, odd lengths, a mask.
    query = jax.random.normal(jax.random.key(0), (2, length, 2, 64))
    key, value = (jax.random.normal(jax.random.key(i), (2, seen, 2, 64)) for i in (1, 2))
    mask = jax.random.bernoulli(jax.random.key(3), 0.5, (2, seen)).at[:, 0].set(True) if masked else None
    out, lse = splash_attention(query, key, value, mask, return_lse=True, interpret=True)
    expected, expected_lse = xla_attention(query, key, value, mask, return_lse=True)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
    without, nothing = splash_attention(query, key, value, mask, return_lse=False, interpret=True)
    np.testing.assert_allclose(without, expected, atol=1e-5)
    assert nothing is None


def test_no_array_of_a_set_grows_with_the_square_of_its_size() -> None:
    """Neither a dense mask nor a copy of the pool per image appears anywhere in the program."""

    def largest(images: int) -> int:
        image, words = streams(0, 1, images, 16, 2, 1, 4)
        tokens = random_tokens(0, 16, 0.5)
        jaxpr = jax.make_jaxpr(
            lambda image, text: consistent_attention(image, text, tokens, anchor_pool(image, tokens, 2), anchors=2)
        )(image, words)
        return max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)

    # Two anchors: doubling the images may only double the largest array.
    assert largest(16) <= 2 * largest(8)


def test_the_pool_is_the_anchors_tokens_once() -> None:
    image, _ = streams(6, 2, 4, 9, 3)
    tokens = random_tokens(5, 9, 0.5)
    pool = anchor_pool(image, tokens, 3)
    assert isinstance(pool, KeyValue)
    assert pool.key.shape == (2, 3 * len(tokens.shared), N, H)


def test_one_image_without_sharing_is_joint_attention() -> None:
    image, words = streams(7, 2, 1, 9, 3)
    for fraction in (0.3, 1.0):
        found = shared(image, words, random_tokens(0, 9, fraction), 1)
        for f, expected in zip(found, joint_attention(image, words), strict=True):
            np.testing.assert_allclose(f, expected, atol=2e-6)
