"""Attention: what padding, folding and joining may not change."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from genaffect_jax.models.mmdit.attention import (
    QKV,
    BranchInputs,
    KeyValue,
    attend,
    attend_shared,
    concatenated_cross_attention,
    joint_attention,
)
from genaffect_jax.models.mmdit.projections import KEY_SCALE, ConditionBranch, QKVProjection

N, H = 2, 8


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def plain_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One sequence [Q, N, H], written out in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("qnh,knh->nqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nqk,knh->qnh", weights, value).reshape(len(query), -1)


def test_attend_is_softmax_attention_in_every_batch_entry() -> None:
    query, key, value = normal(0, 2, 3, 5, N, H), normal(1, 2, 3, 7, N, H), normal(2, 2, 3, 7, N, H)
    found = attend(query, key, value)
    for g in range(2):
        for e in range(3):
            expected = plain_attention(query[g, e], key[g, e], value[g, e])
            np.testing.assert_allclose(found[g, e], expected, atol=1e-5)


def test_masked_keys_are_as_if_absent() -> None:
    query, key, value = normal(0, 2, 5, N, H), normal(1, 2, 7, N, H), normal(2, 2, 7, N, H)
    mask = jnp.arange(7) < jnp.array([[4], [7]])
    found = attend(query, key.at[0, 4:].set(1e4), value.at[0, 4:].set(1e4), mask)
    np.testing.assert_allclose(found[0], attend(query[:1], key[:1, :4], value[:1, :4])[0], atol=1e-6)
    np.testing.assert_allclose(found[1], attend(query[1:], key[1:], value[1:])[0], atol=1e-6)


def test_shared_keys_equal_a_copy_for_every_expression() -> None:
    query, key, value = normal(0, 2, 3, 5, N, H), normal(1, 2, 7, N, H), normal(2, 2, 7, N, H)
    mask = jnp.arange(7) < jnp.array([[4], [7]])
    copies = [jnp.repeat(x[:, None], 3, axis=1) for x in (key, value, mask)]
    np.testing.assert_allclose(attend_shared(query, KeyValue(key, value), mask), attend(query, *copies), atol=1e-6)


def test_joint_attention_returns_each_stream_its_own_rows() -> None:
    image = QKV(*(normal(i, 1, 6, N, H) for i in range(3)))
    text = QKV(*(normal(i, 1, 4, N, H) for i in range(3, 6)))
    mixed_image, mixed_text = joint_attention(image, text)
    key, value = (np.concatenate([a[0], b[0]]) for a, b in zip(image[1:], text[1:], strict=True))
    np.testing.assert_allclose(mixed_image[0], plain_attention(image.query[0], key, value), atol=1e-5)
    np.testing.assert_allclose(mixed_text[0], plain_attention(text.query[0], key, value), atol=1e-5)


def test_the_concatenated_branch_is_one_softmax_over_both_kinds_of_tokens() -> None:
    query, mixed = normal(0, 2, 3, 5, N, H), normal(5, 2, 3, 5, N * H)
    identity = KeyValue(normal(1, 2, 4, N, H), normal(2, 2, 4, N, H))
    expression = KeyValue(normal(3, 2, 3, 6, N, H), normal(4, 2, 3, 6, N, H))
    branches = BranchInputs(identity, expression, jnp.float32(0.5), jnp.float32(2.0))
    mask = jnp.arange(4) < jnp.array([[3], [4]])
    for given, seen in ((None, (4, 4)), (mask, (3, 4))):
        found = concatenated_cross_attention(mixed, query, branches, given)
        for g in range(2):
            for e in range(3):
                key = np.concatenate([identity.key[g, : seen[g]], expression.key[g, e]])
                value = np.concatenate([0.5 * identity.value[g, : seen[g]], 2.0 * expression.value[g, e]])
                expected = mixed[g, e] + plain_attention(query[g, e], key, value)
                np.testing.assert_allclose(found[g, e], expected, atol=1e-5)


def test_branch_keys_start_as_the_scaled_queries_of_their_tokens_and_values_at_zero() -> None:
    tokens = 100.0 * normal(0, 2, 5, 16)
    for qk_norm, scale in ((True, KEY_SCALE), (False, 1.0)):
        queries = QKVProjection(16, N, H, qk_norm=qk_norm, rngs=nnx.Rngs(0))
        branch = ConditionBranch(queries, 16, rngs=nnx.Rngs(1))(tokens)
        np.testing.assert_allclose(branch.key, scale * queries(tokens).query, rtol=1e-5, atol=1e-5)
        assert (jnp.square(branch.key).mean() < 10.0) == qk_norm
        assert not branch.value.any()


def test_softmax_of_bfloat16_inputs_is_taken_in_float32() -> None:
    # 513 equal keys: in bfloat16 the softmax's sum would stop at 256 and the mean come out twice too large.
    query, key = jnp.zeros((1, 1, 1, H), jnp.bfloat16), jnp.zeros((1, 513, 1, H), jnp.bfloat16)
    found = attend(query, key, jnp.ones_like(key))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), 1.0, atol=0.02)
