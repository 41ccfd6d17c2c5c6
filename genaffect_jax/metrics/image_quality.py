"""Image quality beside true images: distance of distributions, sharpness of edges, parts that should not change."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

# Grey levels per pixel from which a place of the true image is an edge.
_EDGE = 24.0
# Pixels by which an edge may be off.
_NEARBY = 2


def frechet_distance(first: Float[np.ndarray, "N W"], second: Float[np.ndarray, "M W"]) -> float:
    """Squared Frechet distance of two sets of features, each taken as one normal distribution.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` (Heusel et al. 2017, arXiv 1706.08500, section 2), there with
    Inception's features. Of other features it is another figure: it is named by its encoder, and compared only with
    figures of the same encoder and about the same number of images, as few images give large distances.

    Raises:
        ValueError: different widths, or fewer than two images in a set.
    """
    if first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(f"frechet_distance: features of shapes {first.shape} and {second.shape}")
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in map(np.float64, (first, second))))  # noqa: B905
    # The trace of (C1 C2)^(1/2) is that of (R C2 R)^(1/2) with R = C1^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0.0)).sum()
    distance = np.square(means[0] - means[1]).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared
    return float(max(distance, 0.0))


def edge_sharpness(image: UInt8[np.ndarray, "S S 3"], truth: UInt8[np.ndarray, "S S 3"]) -> float:
    """How steep an image is where the true image has edges, as a share of the true image's steepness.

    1 is as sharp as the truth; a blurred or missing edge is below, an oversharpened one above. Steepness is the length
    of the gradient of the grey values, by differences of neighbouring pixels. At every edge of the true image the
    steepest place within `_NEARBY` pixels counts, so that an edge that lies a pixel off counts as it is drawn.

    Returns:
        The share; nan if the true image has no edges.
    """
    true = _steepness(truth)
    edges = true >= _EDGE
    if not edges.any():
        return float("nan")
    return float(_steepest_nearby(_steepness(image))[edges].mean() / _steepest_nearby(true)[edges].mean())


def still_parts(truth: UInt8[np.ndarray, "V S S 3"]) -> Bool[np.ndarray, "S S"]:
    """Pixels that are the same, but for one level, in all true images of a set: background, clothes, hair."""
    return np.ptp(truth.astype(np.int16), axis=0).max(-1) <= 1


def background_variation(images: UInt8[np.ndarray, "V S S 3"], truth: UInt8[np.ndarray, "V S S 3"]) -> float:
    """How much a set varies where its true images are alike: standard deviation over the set, in levels of 255.

    Returns:
        The mean over those pixels and the channels; nan if there are none.
    """
    still = still_parts(truth)
    return float(images.astype(np.float32).std(0)[still].mean()) if still.any() else float("nan")


def _steepness(image: UInt8[np.ndarray, "S S 3"]) -> Float[np.ndarray, "S-1 S-1"]:
    grey = image.astype(np.float32).mean(-1)
    return np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])


def _steepest_nearby(steepness: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """The largest value within `_NEARBY` pixels of each place, in a square."""
    for axis in (0, 1):
        padding = [(_NEARBY, _NEARBY) if a == axis else (0, 0) for a in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(steepness, padding), 2 * _NEARBY + 1, axis)
        steepness = windows.max(-1)
    return steepness
