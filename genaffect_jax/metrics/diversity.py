"""Diversity: how much several images of the same person and expression differ. NumPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8


def mean_pairwise_difference(groups: Float[np.ndarray, "*batch K W"]) -> Float[np.ndarray, "*batch"]:
    """Mean absolute difference of the pairs of different vectors inside each group of K; mean over channels too.

    Raises:
        ValueError: groups of one vector.
    """
    K = groups.shape[-2]
    if K < 2:
        raise ValueError(f"mean_pairwise_difference: groups of {K} vectors have no pairs")
    first, second = np.triu_indices(K, 1)
    return np.abs(groups[..., first, :] - groups[..., second, :]).mean((-2, -1))


def pixel_deviation(images: UInt8[np.ndarray, "K S S 3"]) -> float:
    """Standard deviation of each pixel over K images, in levels of 255; mean over pixels and channels.

    It is the sample deviation (divided by K - 1), so that it depends little on K.

    Raises:
        ValueError: one image.
    """
    if len(images) < 2:
        raise ValueError(f"pixel_deviation: {len(images)} images do not differ")
    return float(images.astype(np.float32).std(0, ddof=1).mean())
