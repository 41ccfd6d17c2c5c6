"""The bound of attention scores that RMS-normalised queries and keys have, known from the parameters alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array

# What `hopper_attention` takes, in natural units. exp(69) is 2^100: a sum of 2^15 such weights, times values, is below
# float32's 2^127, and exp(-69) is above its smallest normal number, 2^-126.
LARGEST_SCORE = 69.0
# The parameter that every block has.
KERNEL = "image_qkv.query.kernel"


def score_bound(parameters: Mapping[str, Array]) -> float:
    """The largest score that the attention of an `MMDiT` (or of a network that holds one) with these parameters has.

    Queries and keys have root mean square 1 before their learned scales a and b, so with heads of size H a score
    `sum_i a_i q_i b_i k_i / sqrt(H)` is at most `sqrt(H) max_i |a_i b_i|` (Cauchy-Schwarz). Condition branches are not
    counted. Infinite without RMS norm.

    Raises:
        ValueError: the parameters hold no attention of an `MMDiT`.
    """
    joint = ("image_qkv", "text_qkv")
    kernels = [name for name in parameters if name.endswith(KERNEL)]
    if not kernels:
        raise ValueError(f"score bound: none of {len(parameters)} parameters is called *{KERNEL}, so it is unknown")
    largest = 0.0
    for name in kernels:
        layers = name.removesuffix(KERNEL)
        for projections in (joint, ("image_attention.qkv",)):
            if f"{layers}{projections[0]}.query.kernel" not in parameters:
                continue
            if f"{layers}{projections[0]}.query_norm.scale" not in parameters:
                return math.inf
            queries, keys = (
                [np.abs(np.asarray(parameters[f"{layers}{p}.{norm}.scale"], np.float64)) for p in projections]
                for norm in ("query_norm", "key_norm")
            )
            largest = max(largest, *(float((a * b).max()) * math.sqrt(a.shape[-1]) for a in queries for b in keys))
    # Rounding to half precision makes queries and keys larger by up to 2^-8 each.
    return largest * (1 + 2**-8) ** 2
