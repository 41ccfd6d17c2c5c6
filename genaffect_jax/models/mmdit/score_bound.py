"""A bound of all attention scores, which RMS-normalised queries and keys have and the parameters alone decide."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array

from genaffect_jax.models.parameter_names import ATTENTIONS, QUERY_KERNEL

# The bound within which `kernels.hopper_attention` is exact, in natural units. exp(69) is 2^100: a sum of 2^15 such
# weights, times values, is below float32's 2^127, and exp(-69) is above its smallest normal number, 2^-126.
LARGEST_SCORE = 69.0


def score_bound(parameters: Mapping[str, Array]) -> float:
    """An upper bound of the absolute attention scores of an `MMDiT`, or of a network that holds one.

    Queries and keys have root mean square 1 before their learned scales a and b. With heads of size H, a score
    `sum_i a_i q_i b_i k_i / sqrt(H)` is therefore at most `sqrt(H) max_i |a_i b_i|` (Cauchy-Schwarz). Scores of the
    condition branches are not bounded here; the max-free kernel never computes them.

    Args:
        parameters: flat parameters by name.

    Returns:
        The bound in natural units, rounding to half precision included; infinity for a network without RMS norm.

    Raises:
        ValueError: the parameters hold no attention of an `MMDiT`.
    """
    kernels = [name for name in parameters if name.endswith(QUERY_KERNEL)]
    if not kernels:
        raise ValueError(
            f"score bound: none of {len(parameters)} parameters is called *{QUERY_KERNEL}, so it is unknown"
        )
    largest = 0.0
    for name in kernels:
        block = name.removesuffix(QUERY_KERNEL)
        for projections in ATTENTIONS:
            if f"{block}{projections[0]}.query.kernel" not in parameters:
                continue
            if f"{block}{projections[0]}.query_norm.scale" not in parameters:
                return math.inf
            queries, keys = (
                [np.abs(np.asarray(parameters[f"{block}{p}.{norm}.scale"], np.float64)) for p in projections]
                for norm in ("query_norm", "key_norm")
            )
            largest = max(largest, *(float((a * b).max()) * math.sqrt(a.shape[-1]) for a in queries for b in keys))
    # Rounding to half precision makes queries and keys larger by up to 2^-8 each.
    return largest * (1 + 2**-8) ** 2
