"""Joint and decoupled attention of short sequences in one kernel, for NVIDIA Hopper GPUs in half precision.

For each image the kernel computes what `models.mmdit.attention` describes as three attentions: that of text and image
tokens among themselves, and those of the image queries to identity and expression tokens, which it adds. The norms of
the image queries and keys are part of it. With some hundred tokens the arrays between these steps, and not the
arithmetic, take the time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from genaffect_jax.kernels.partition import Axes, run_partitioned
from genaffect_jax.kernels.remat import ATTENTION
from genaffect_jax.parallel.xla import is_hopper

# All tokens of one head of an image lie in shared memory together.
HEAD_SIZE, MOST_IMAGE_TOKENS, MOST_OTHERS = 64, 256, 64

_TOKENS: Axes = ("batch", None, None, "heads")
_SHARED: Axes = ("batch", None, "heads")


class Inputs(NamedTuple):
    """What the attention reads; D = N * 64, heads side by side."""

    query: Float[Array, "G E L D"]
    """Queries of the image tokens, before their norm."""
    key_value: Float[Array, "G E L 2 D"]
    """Keys, before their norm, and values of the image tokens."""
    query_scale: Float[Array, " 64"]
    """Learned scale of the norm of the image queries, float32."""
    key_scale: Float[Array, " 64"]
    """Learned scale of the norm of the image keys, float32."""
    text_query: Float[Array, "G E T D"]
    """Normalised, like all that follows."""
    own_key: Float[Array, "G E T+J D"]
    """Other keys of each image: those of its text, then those of its expression."""
    own_value: Float[Array, "G E T+J D"]
    """Their values."""
    identity_key: Float[Array, "G K D"]
    """Keys of the identity tokens of each group."""
    identity_value: Float[Array, "G K D"]
    """Their values."""


# Logical axes of each of `Inputs`.
_AXES: tuple[Axes, ...] = (
    _TOKENS,
    ("batch", None, None, None, "heads"),
    (None,),
    (None,),
    *(_TOKENS,) * 3,
    *(_SHARED,) * 2,
)
# Of sums over tokens that are finished outside.
_PARTS: Axes = ("batch", "heads", None, None)


def has_decoupled_attention(dtype: Any, head_size: int, image: int, own: int, identity: int) -> bool:
    """Whether the kernel takes this attention, on the devices that programs are compiled for.

    Args:
        dtype: type of the tokens.
        head_size: numbers in one head.
        image: number of image tokens L.
        own: number of text and expression tokens T + J.
        identity: number of identity tokens K.
    """
    short = image <= MOST_IMAGE_TOKENS and image % HEAD_SIZE == 0 and own <= MOST_OTHERS and identity <= MOST_OTHERS
    return short and head_size == HEAD_SIZE and dtype in (jnp.bfloat16, jnp.float16) and is_hopper()


@jax.custom_vjp
def decoupled_attention(inputs: Inputs) -> tuple[Float[Array, "G E L D"], Float[Array, "G E T D"]]:
    """The attention of image and text tokens; see the module. The result for equal inputs is equal to the bit.

    Args:
        inputs: of sizes that `has_decoupled_attention` accepts.
    """
    return _forward(inputs)[0]


def _operands(inputs: Inputs) -> Any:
    """The kernels' operands: one axis for all images, scales with the factor of the queries."""
    from genaffect_jax.kernels.hopper_decoupled_attention import QUERY_FACTOR, Operands

    text_query = (inputs.text_query.astype(jnp.float32) * QUERY_FACTOR).astype(inputs.text_query.dtype)
    scales = jnp.stack([inputs.query_scale * QUERY_FACTOR, inputs.key_scale])
    return Operands(
        _flat(inputs.query),
        _flat(inputs.key_value).reshape(-1, inputs.query.shape[2], 2 * inputs.query.shape[3]),
        scales.astype(jnp.float32),
        _flat(text_query),
        _flat(inputs.own_key),
        _flat(inputs.own_value),
        inputs.identity_key,
        inputs.identity_value,
    )


def _flat(x: Array) -> Array:
    """One axis for groups and images."""
    return x.reshape(-1, *x.shape[2:])


def _counts(inputs: Inputs) -> tuple[int, int]:
    """Numbers of text and expression tokens."""
    text = inputs.text_query.shape[2]
    return text, inputs.own_key.shape[2] - text


def _forward(inputs: Inputs) -> tuple[tuple[Array, Array], Any]:
    def local(*arrays: Array) -> Any:
        # Imported here: the module brings Pallas's GPU backend with it.
        from genaffect_jax.kernels.hopper_decoupled_attention import forward

        own = Inputs(*arrays)
        image, text, lse = forward(_operands(own), *_counts(own))
        return image.reshape(own.query.shape), text.reshape(own.text_query.shape), lse

    image, text, lse = run_partitioned(local, tuple(inputs), axes=_AXES, out=(_TOKENS, _TOKENS, _PARTS))
    image, text, lse = (checkpoint_name(x, ATTENTION) for x in (image, text, lse))
    return (image, text), (inputs, image, text, lse)


def _backward(kept: Any, gradient: tuple[Array, Array]) -> tuple[Inputs]:
    inputs, image, text, lse = kept

    def local(*arrays: Array) -> Any:
        from genaffect_jax.kernels.hopper_decoupled_attention import QUERY_FACTOR
        from genaffect_jax.kernels.hopper_decoupled_attention_gradient import backward

        own, (image, text, lse, *gradient) = Inputs(*arrays[: len(inputs)]), arrays[len(inputs) :]

        def of_group(parts: Array) -> Array:
            each = parts.reshape(*own.query.shape[:2], *parts.shape[1:])
            return each.astype(jnp.float32).sum(axis=1).astype(parts.dtype)

        found = backward(_operands(own), (_flat(image), _flat(text)), lse, tuple(map(_flat, gradient)), _counts(own)[1])
        text_query = (found.text_query.astype(jnp.float32) * QUERY_FACTOR).astype(found.text_query.dtype)
        return [
            found.query.reshape(own.query.shape),
            found.key_value.reshape(own.key_value.shape),
            found.query_scale * QUERY_FACTOR,
            found.key_scale,
            text_query.reshape(own.text_query.shape),
            found.own_key.reshape(own.own_key.shape),
            found.own_value.reshape(own.own_value.shape),
            of_group(found.identity_key),
            of_group(found.identity_value),
        ]

    made = run_partitioned(
        local,
        (*inputs, image, text, lse, *gradient),
        axes=(*_AXES, _TOKENS, _TOKENS, _PARTS, _TOKENS, _TOKENS),
        out=[*_AXES[:2], _PARTS, _PARTS, *_AXES[4:]],
    )
    query, key_value, *scales = made[:4]
    query_scale, key_scale = (x.sum(axis=(0, 1, 2)) for x in scales)
    return (Inputs(query, key_value, query_scale, key_scale, *made[4:]),)


decoupled_attention.defvjp(_forward, _backward)
