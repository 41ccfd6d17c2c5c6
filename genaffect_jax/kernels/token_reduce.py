"""One pass over tokens that computes new tokens and, at the same time, sums over the tokens of each image.

The gradients of biases, learned scales, shifts and gates are sums over tokens of values that other gradients read or
write anyway. XLA computes these sums in passes of their own, at a quarter of a GPU's memory rate
(docs/notes/training_speed.md#token-reductions). On NVIDIA Hopper GPUs, in half precision, one kernel computes both
(`kernels.hopper_token_reduce`). Elsewhere the same function runs on whole arrays (`kernels.token_reduce_reference`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from genaffect_jax.kernels.token_reduce_reference import STRIP, TokenFunction, token_reduce_reference
from genaffect_jax.parallel.xla import is_hopper


def token_reduce(
    function: TokenFunction,
    tokens: Sequence[Float[Array, "P L C"]],
    vectors: Sequence[Float[Array, "P C"]] = (),
    numbers: Sequence[Float[Array, "P L"]] = (),
    *,
    outputs: int,
    sums: int,
    group: int | None = None,
    sections: int = 1,
) -> tuple[list[Float[Array, "P L C"]], list[Float32[Array, "P C"]]]:
    """Applies a function to every token, and sums over the tokens of each image.

    Args:
        function: makes new tokens and terms of sums. Where all tokens are 0, its terms must be 0.
        tokens: arrays of one shape and type.
        vectors: one number per feature, for all tokens of an image.
        numbers: one number per token.
        outputs: number of arrays of new tokens.
        sums: number of arrays of terms to be summed.
        group: number of neighbouring features that the function may sum over (`over_group`), a divisor of C; None: it
            treats every feature by itself.
        sections: parts of the features that plain JAX computes one after the other, in less memory.

    Returns:
        The new tokens, in the type of the tokens, and the sums.
    """
    _, length, width = tokens[0].shape
    half = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in tokens)
    # The kernel's tiles have `STRIP` tokens: of a few register tokens in each image it would mostly read padding.
    if is_hopper() and half and group in (None, STRIP) and width % STRIP == 0 and length >= STRIP:
        from genaffect_jax.kernels.hopper_token_reduce import hopper_token_reduce

        return hopper_token_reduce(function, tokens, vectors, numbers, outputs, sums)

    def section(arrays: Sequence[Array], i: int) -> list[Array]:
        return [jnp.split(x, sections, axis=-1)[i] for x in arrays]

    parts = [
        token_reduce_reference(function, section(tokens, i), section(vectors, i), numbers, group)
        for i in range(sections)
    ]
    made, summed = (
        [jnp.concatenate(x, axis=-1) for x in zip(*arrays, strict=True)] for arrays in zip(*parts, strict=True)
    )
    return made, summed
