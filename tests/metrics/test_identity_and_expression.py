"""The figures of the encoders' reports, on vectors whose answer is known."""

import numpy as np
import pytest

from genaffect_jax.metrics.expression import expression_accuracy, spread_shares
from genaffect_jax.metrics.identity import mean_cosine, verify


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def people(count, each, noise, seed=0):
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((count, 1, 64)))
    vectors = unit(centres + noise * rng.standard_normal((count, each, 64)) / 8)
    return vectors.reshape(-1, 64), np.repeat([f"p{i:03d}" for i in range(count)], each)


def test_embeddings_that_separate_people_are_perfect():
    found = verify(*people(20, 4, 0.1))
    assert (found.accuracy, found.auc, found.tar_at_far) == (1.0, 1.0, 1.0)
    assert (found.same_pairs, found.different_pairs) == (20 * 6, 2 * 45 * 16)


def test_random_embeddings_are_at_chance():
    vectors, names = people(40, 5, 0.1)
    found = verify(np.random.default_rng(1).permutation(vectors), names)
    assert found.accuracy == pytest.approx(0.5, abs=0.05)
    assert found.auc == pytest.approx(0.5, abs=0.05)
    assert found.tar_at_far < 0.05


def test_embeddings_that_follow_the_expression_are_worse_than_chance():
    vectors, names = people(10, 10, 0.1)
    swapped = vectors.reshape(10, 10, 64).transpose(1, 0, 2).reshape(100, 64)  # the direction is the expression's
    found = verify(swapped, names)
    assert found.auc < 0.5
    assert found.tar_at_far == 0.0


def test_the_threshold_comes_from_other_people_than_those_it_is_used_on():
    # Half the people (p000, p002, ..) lie around the pole, so that any two of them have cosines above 0.9; the pairs of
    # one person have 0.9 or more in both halves. A threshold fit for one half is wrong for the other.
    vectors, names = people(8, 4, 0.3)
    pole = np.zeros(64)
    pole[0] = 6.0
    even = np.array([int(n[1:]) % 2 == 0 for n in names])
    vectors = unit(vectors + even[:, None] * pole)
    assert verify(vectors, names).accuracy < 0.8
    assert verify(vectors[~even], names[~even]).accuracy == 1.0


def test_hand_computed_tar_and_auc():
    # Cosines of the two halves are those of one half: same 1, 0; different 0.6, 0.8 (each pair of the plane twice).
    a, b, c = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]
    names = ["p0", "p1", "p0", "p1", "p2", "p3"]
    found = verify(np.array([a, a, b, b, c, c]), names, far=0.25)
    assert found.auc == 0.0  # same: 0; different: 0.6, 0.8
    assert found.tar_at_far == 0.0
    names = ["p0", "p1", "p2", "p3", "p0", "p1"]
    found = verify(np.array([a, a, b, b, c, c]), names, far=0.25)  # same: 0.6; different: 0, 0.8
    assert found.auc == 0.5


def test_too_few_people_are_refused():
    with pytest.raises(ValueError, match="each half of the people needs"):
        verify(np.eye(3), ["a", "a", "b"])
    with pytest.raises(ValueError, match="3 embeddings and 2 names"):
        verify(np.eye(3), ["a", "b"])


def test_errors_are_means_over_all_over_channels_and_over_active_places():
    true = np.array([[0.0, 0.5], [0.0, -1.0]])
    predicted = np.array([[0.1, 0.5], [0.0, -0.6]])
    found = expression_accuracy(predicted, true, np.array([0.0, 0.0]))
    assert found.mean == pytest.approx(0.125)
    assert found.channels == pytest.approx((0.05, 0.2))
    assert found.baseline == pytest.approx(0.375)
    assert found.active == pytest.approx(0.2)
    assert found.active_baseline == pytest.approx(0.75)
    with pytest.raises(ValueError, match="shapes"):
        expression_accuracy(predicted, true, np.zeros(3))


def test_spread_tells_people_from_expressions():
    people_only = np.broadcast_to(np.array([0.0, 2.0])[:, None, None], (2, 3, 4))
    assert spread_shares(people_only) == pytest.approx((1.0, 0.0))
    assert spread_shares(people_only.transpose(1, 0, 2)) == pytest.approx((0.0, 1.0))


def test_mean_cosine_leaves_out_an_image_with_itself():
    assert mean_cosine(np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]])) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="no pairs"):
        mean_cosine(np.ones((2, 1, 3)))
