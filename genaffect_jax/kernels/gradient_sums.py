"""Gradients of parameters that several devices add to: the sums over devices are float32.

A parameter that is cast to bfloat16 before it is used gets a bfloat16 gradient, and each device makes its own part of
it. If the parts were rounded before they are added, 256 + 1 would be 256. It is not enough to make them in float32 and
to round the sum: the TPU compiler lets a rounding that follows an all-reduce come before it, also through an
optimization barrier, and its option `xla_tpu_spmd_f32_accum_for_bf16_ar` does not change that (libtpu 0.0.42.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaffect_jax.kernels.partition import is_cut


def sum_dtype(x: Array, dtype: Any) -> Any:
    """The type in which a device makes its part of a sum over the tokens of `x`; `rounded` then gives the result.

    Args:
        x: the tokens.
        dtype: type of the result, which one device makes at once.
    """
    return jnp.float32 if is_cut(x) else dtype


def rounded(total: Float[Array, "*size"], dtype: Any) -> Float[Array, "*size"]:
    """A sum over devices in another type, rounded only when it is complete."""
    if total.dtype == dtype:
        return total
    # The TPU compiler leaves this operation where it is; the cast that follows changes no value.
    precision = jnp.finfo(dtype)
    return jax.lax.reduce_precision(total, precision.nexp, precision.nmant).astype(dtype)


def spread(parameter: Float[Array, "*size"], shape: Sequence[int], dtype: Any) -> Float[Array, "*size"]:
    """A float32 parameter repeated to a shape, in the type of the tokens that it is added to.

    Repeated first and cast then, its gradient is a float32 sum over tokens.
    """
    return jnp.broadcast_to(parameter, shape).astype(dtype)
