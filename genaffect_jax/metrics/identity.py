"""Identity: verification of people by the cosine of their embeddings. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Verification:
    """Telling pairs of one person from pairs of two, by the cosine of their embeddings."""

    accuracy: float
    """Mean of the shares of right answers on same and on different pairs, at `threshold`."""
    threshold: float
    """Cosine from which a pair counts as one person; chosen on other people than those measured on."""
    auc: float
    """Area under the ROC curve: how often a same pair has the higher cosine (ties count half)."""
    tar_at_far: float
    """Share of same pairs accepted where `far` of the different pairs are."""
    far: float
    """The false-accept rate of `tar_at_far`."""
    same_pairs: int
    """Pairs of one person that were measured."""
    different_pairs: int
    """Pairs of two people that were measured."""


def verify(embeddings: Float[np.ndarray, "B W"], people: Sequence[str] | np.ndarray, far: float = 1e-3) -> Verification:
    """Verification over all pairs of images, the threshold chosen on one half of the people, measured on the other.

    The people are sorted by name and divided alternately; each half chooses the threshold for the other, and what is
    reported is the mean of both (counts: the sum). Accuracy weighs same and different pairs equally, as the balanced
    pairs of Labeled Faces in the Wild do (Huang et al. 2007); the threshold is the one with the best accuracy.

    Args:
        embeddings: unit vectors.
        people: who each image shows.
        far: false-accept rate, above 0.

    Raises:
        ValueError: not one name per image, or a half has no pair of one person or of two.
    """
    names = np.asarray(people)
    if len(names) != len(embeddings):
        raise ValueError(f"verify: {len(embeddings)} embeddings and {len(names)} names")
    order = {name: i for i, name in enumerate(sorted(set(names.tolist())))}
    side = np.array([order[name] % 2 for name in names.tolist()])
    halves = [_pairs(np.asarray(embeddings)[side == s], names[side == s]) for s in (0, 1)]
    for same, different in halves:
        if not len(same) or not len(different):
            raise ValueError(
                f"verify: {len(order)} people with {len(names)} images: each half of the people needs two people "
                "and two images of one of them"
            )
    thresholds = [_best_threshold(*halves[1]), _best_threshold(*halves[0])]
    accuracies = [((same >= t).mean() + (other < t).mean()) / 2 for (same, other), t in zip(halves, thresholds)]  # noqa: B905 (two of each)
    accepted = [(same > _quantile_above(other, far)).mean() for same, other in halves]
    return Verification(
        accuracy=float(np.mean(accuracies)),
        threshold=float(np.mean(thresholds)),
        auc=float(np.mean([_auc(*half) for half in halves])),
        tar_at_far=float(np.mean(accepted)),
        far=far,
        same_pairs=sum(len(same) for same, _ in halves),
        different_pairs=sum(len(different) for _, different in halves),
    )


def mean_cosine(groups: Float[np.ndarray, "N K W"]) -> float:
    """Mean cosine of the pairs of different images inside each of N groups of K unit vectors.

    Raises:
        ValueError: groups of one image.
    """
    K = groups.shape[1]
    if K < 2:
        raise ValueError(f"mean_cosine: groups of {K} images have no pairs")
    cosines = np.einsum("nkw,njw->nkj", groups, groups)
    return float(((cosines.sum((1, 2)) - np.einsum("nkk->n", cosines)) / (K * (K - 1))).mean())


def _pairs(embeddings: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of one person and of all pairs of two."""
    first, second = np.triu_indices(len(embeddings), 1)
    cosines = (embeddings @ embeddings.T)[first, second]
    same = names[first] == names[second]
    return cosines[same], cosines[~same]


def _best_threshold(same: np.ndarray, different: np.ndarray) -> float:
    """The cosine with the best balanced accuracy, half way between the two values it lies between."""
    values = np.concatenate([same, different])
    order = np.argsort(values, kind="stable")
    # Threshold above the first k values: those k are answered "different".
    rejected_same = np.concatenate([[0], np.cumsum(order < len(same))]) / len(same)
    rejected_different = np.concatenate([[0], np.cumsum(order >= len(same))]) / len(different)
    values = values[order]
    edges = np.concatenate([[values[0] - 1e-6], (values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    # Equal values cannot be separated: only places where the value changes are thresholds.
    allowed = np.concatenate([[True], values[1:] > values[:-1], [True]])
    return float(edges[np.argmax(np.where(allowed, rejected_different - rejected_same, -np.inf))])


def _quantile_above(different: np.ndarray, far: float) -> float:
    """The smallest of the cosines that at most a share `far` of all lies above."""
    ordered = np.sort(different)[::-1]
    return float(ordered[min(int(far * len(ordered)), len(ordered) - 1)])


def _auc(same: np.ndarray, different: np.ndarray) -> float:
    """Mann-Whitney statistic over its largest value."""
    ordered = np.sort(different)
    below, not_above = np.searchsorted(ordered, same, "left"), np.searchsorted(ordered, same, "right")
    return float(((below + not_above) / 2).mean() / len(ordered))
