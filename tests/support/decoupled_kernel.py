"""The kernels of `kernels.hopper_decoupled_attention` in plain JAX, with which tests stand in for a Hopper GPU."""

import math

import jax
import jax.numpy as jnp

from genaffect_jax.kernels.hopper_decoupled_attention import Operands
from genaffect_jax.kernels.hopper_decoupled_attention_gradient import Gradients
from genaffect_jax.kernels.hopper_tiles import TILE
from genaffect_jax.kernels.norms import rms_norm


def forward(operands: Operands, text: int, expression: int):
    """Results, and log-sum-exps that only `backward` below would need, and does not."""
    image, text_out = _attend(operands, text)
    images, length, width = operands.query.shape
    return image, text_out, jnp.zeros((images, width // TILE, 3, length + TILE))


def backward(operands: Operands, mixed, lse, gradient, expression: int) -> Gradients:
    """Gradients by differentiation; parts of sums that the kernel leaves to the caller stand in the first place."""
    images, length, width = operands.query.shape
    share = images // len(operands.identity_key)
    each = operands._replace(
        identity_key=jnp.repeat(operands.identity_key, share, 0),
        identity_value=jnp.repeat(operands.identity_value, share, 0),
    )
    (found,) = jax.vjp(lambda x: _attend(x, operands.text_query.shape[1]), each)[1](gradient)
    parts = [jnp.zeros((images, width // TILE, length // TILE, TILE)).at[0, 0, 0].set(x) for x in found.scales]
    return Gradients(found.query, found.key_value, *parts, *found[3:])


def _attend(operands: Operands, text: int):
    def heads(x):
        return x.reshape(*x.shape[:2], -1, TILE)

    def softmax(query, key, value):
        weights = jax.nn.softmax(jnp.einsum("pqnh,pknh->pnqk", query, key) * math.log(2), -1)  # scores to the base 2
        return jnp.einsum("pnqk,pknh->pqnh", weights, value).reshape(*query.shape[:2], -1)

    key, value = map(heads, jnp.split(operands.key_value, 2, axis=-1))
    query, key = (rms_norm(x, s) for x, s in zip((heads(operands.query), key), operands.scales, strict=True))
    own_key, own_value = heads(operands.own_key), heads(operands.own_value)
    share = len(query) // len(operands.identity_key)
    identity = (jnp.repeat(heads(x), share, 0) for x in (operands.identity_key, operands.identity_value))
    joint = jnp.concatenate([own_key[:, :text], key], 1), jnp.concatenate([own_value[:, :text], value], 1)
    image = softmax(query, *joint) + softmax(query, own_key[:, text:], own_value[:, text:]) + softmax(query, *identity)
    return image, softmax(heads(operands.text_query), *joint)
