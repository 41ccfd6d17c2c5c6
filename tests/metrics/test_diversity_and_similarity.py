"""Figures of images that should be alike, and of images and texts, where the right answer is known."""

import numpy as np
import pytest

from genaffect_jax.metrics.diversity import mean_pairwise_difference, pixel_deviation
from genaffect_jax.metrics.similarity import clip_score


def test_the_pairwise_difference_is_the_mean_over_pairs_and_channels():
    groups = np.array([[[0, 0], [1, 0], [0, 3]], [[2, 2], [2, 2], [2, 2]]], np.float32)
    pairs = [np.abs(a - b).mean() for a, b in ((groups[0, 0], groups[0, 1]), (groups[0, 0], groups[0, 2]))]
    pairs.append(np.abs(groups[0, 1] - groups[0, 2]).mean())
    np.testing.assert_allclose(mean_pairwise_difference(groups), [np.mean(pairs), 0])


def test_the_pixel_deviation_is_that_of_planted_noise_however_many_images_there_are():
    rng = np.random.default_rng(0)
    for count in (3, 12):
        noise = rng.normal(128, 10, (count, 64, 64, 3)).round().astype(np.uint8)
        unbiased = 10 * {3: 0.8862, 12: 0.9776}[count]  # c4, the mean of a sample deviation of normal numbers
        assert pixel_deviation(noise) == pytest.approx(unbiased, rel=0.02)
    assert pixel_deviation(np.repeat(noise[:1], 3, 0)) == 0


def test_one_image_has_no_diversity():
    with pytest.raises(ValueError, match="groups of 1 vectors have no pairs"):
        mean_pairwise_difference(np.zeros((2, 1, 3)))
    with pytest.raises(ValueError, match="1 images do not differ"):
        pixel_deviation(np.zeros((1, 4, 4, 3), np.uint8))


def test_the_clip_score_is_stretched_and_never_negative():
    np.testing.assert_allclose(clip_score(np.array([[0.3, -0.2], [0.0, 1.0]])), [[0.75, 0], [0, 2.5]])
