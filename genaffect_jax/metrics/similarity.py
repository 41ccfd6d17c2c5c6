"""Similarity of images and texts by embeddings of large encoders. NumPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

CLIP_SCORE_WEIGHT = 2.5


def clip_score(cosines: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """`2.5 max(cosine, 0)` of image and text embeddings (Hessel et al. 2021, arXiv 2104.08718, section 3).

    The weight stretches the range that cosines have in practice to about 0 to 1; it changes no order.
    """
    return CLIP_SCORE_WEIGHT * np.maximum(cosines, 0.0)
