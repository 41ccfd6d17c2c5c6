"""`token_reduce` in plain JAX, and the type and the parts of the functions that it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

# (tokens, vectors, numbers), all float32 and of one shape, to (new tokens, terms to be summed). The last axis is one
# group of features.
TokenFunction = Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], tuple[Sequence[Array], Sequence[Array]]]

# Features per program of the Hopper kernel, and the only group size that it supports.
STRIP = 64


def over_group(x: Float32[Array, "*tokens d"]) -> Float32[Array, "*tokens d"]:
    """The sum over the features of a group, repeated for each of them."""
    return lax.broadcast_in_dim(jnp.sum(x, axis=-1), x.shape, tuple(range(x.ndim - 1)))


def token_reduce_reference(
    function: TokenFunction,
    tokens: Sequence[Float[Array, "P L C"]],
    vectors: Sequence[Float[Array, "P C"]],
    numbers: Sequence[Float[Array, "P L"]],
    group: int | None,
) -> tuple[list[Float[Array, "P L C"]], list[Float32[Array, "P C"]]]:
    """`token_reduce` on whole arrays, in plain JAX; see there for the arguments."""
    (images, _, width), dtype = tokens[0].shape, tokens[0].dtype

    def grouped(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x if group is None else x.reshape(*x.shape[:-1], -1, group)

    cut = [grouped(x) for x in tokens]
    of_images = [jnp.broadcast_to(grouped(x)[:, None], cut[0].shape) for x in vectors]
    of_tokens = [
        jnp.broadcast_to(x.astype(jnp.float32).reshape(*x.shape, *(1,) * (cut[0].ndim - 2)), cut[0].shape)
        for x in numbers
    ]
    made, summed = function(cut, of_images, of_tokens)
    return (
        [x.reshape(tokens[0].shape).astype(dtype) for x in made],
        [x.sum(axis=1).reshape(images, width) for x in summed],
    )
