"""Figures of generated images, on input whose right answer is known."""

import numpy as np
import pytest

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.expressions.grammar import parse_expressions
from genaffect_jax.metrics.bootstrap import bootstrap, jackknife, mean_of, paired_difference
from genaffect_jax.metrics.copying import angle, copy_scores
from genaffect_jax.metrics.dial import dial_figures, read_amounts
from genaffect_jax.metrics.expression import relative_gain
from genaffect_jax.metrics.image_quality import (
    background_variation,
    edge_sharpness,
    frechet_distance,
    still_parts,
)
from genaffect_jax.metrics.words import confusion_matrix, most_confused, retrieval, word_ranks

INTENSITIES = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# Copying


def test_a_copy_of_the_reference_scores_1_the_truth_minus_1_and_the_middle_0():
    truth, reference = unit(normal(2, 50, 16))
    scores = [copy_scores(x, truth, reference) for x in (reference, truth, unit(truth + reference))]
    for found, expected in zip(scores, (1.0, -1.0, 0.0), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_stranger_has_no_copy_score_beyond_1():
    generated, truth, reference = unit(normal(3, 500, 16))
    assert np.abs(copy_scores(generated, truth, reference)).max() <= 1 + 1e-9


def test_a_copy_has_no_score_where_reference_and_truth_are_one_image():
    vector = unit(normal(1, 8))
    assert np.isnan(copy_scores(unit(normal(1, 8, seed=1)), vector, vector)).all()


def test_small_angles_keep_their_digits_in_float32():
    a = np.array([1.0, 0.0], np.float32)
    b = np.array([np.cos(1e-3), np.sin(1e-3)], np.float32)
    assert angle(a, b) == pytest.approx(1e-3, rel=1e-3)
    assert angle(a, -a) == pytest.approx(np.pi)


# Expression


def test_a_copy_of_the_reference_gains_nothing_and_the_wanted_face_everything():
    wanted, reference = normal(4, 6, 40), normal(4, 40, seed=1)
    copies = np.repeat(reference[:, None], 6, 1)
    np.testing.assert_allclose(relative_gain(copies, wanted, reference), 0, atol=1e-12)
    np.testing.assert_allclose(relative_gain(wanted, wanted, reference), 1)
    np.testing.assert_allclose(relative_gain((copies + wanted) / 2, wanted, reference), 0.5)
    assert (relative_gain(3 * copies - 2 * wanted, wanted, reference) < 0).all()
    assert np.isnan(relative_gain(copies, copies, reference)).all()


# Words


def test_exact_readings_are_hits_and_readings_of_a_neighbour_are_confused_with_it():
    prototypes, wanted = normal(12, 40), np.arange(12)
    assert word_ranks(prototypes, prototypes, wanted).tolist() == [0] * 12
    read = prototypes.copy()
    read[3], read[4] = prototypes[7], 0.6 * prototypes[4] + 0.4 * prototypes[5]
    ranks = word_ranks(read, prototypes, wanted)
    assert ranks[3] > 0
    assert ranks[4] == 0
    matrix = confusion_matrix(read, prototypes, wanted)
    np.testing.assert_array_equal(matrix.sum(1), 1)
    (found,) = most_confused(matrix, [f"w{i}" for i in range(12)])
    assert (found.wanted, found.read, found.share) == ("w3", "w7", 1.0)


def test_shuffled_words_are_at_chance():
    prototypes = normal(135, 40)
    wanted = np.tile(np.arange(135), 20)
    ranks = word_ranks(prototypes[np.random.default_rng(1).permutation(wanted)], prototypes, wanted)
    for top in (1, 5):
        assert retrieval(ranks, top).mean() == pytest.approx(top / 135, abs=0.012)


def test_equal_prototypes_are_no_hits_for_free():
    prototypes = np.zeros((5, 3))
    assert word_ranks(prototypes, prototypes, np.arange(5)).tolist() == [2] * 5


def test_a_word_without_images_has_no_row():
    matrix = confusion_matrix(np.ones((2, 3)), normal(4, 3), np.array([1, 1]))
    assert np.isnan(matrix[[0, 2, 3]]).all()
    assert np.isfinite(matrix[1]).all()
    with pytest.raises(ValueError, match="for 3 words"):
        most_confused(matrix, ["a", "b", "c"])


# Dials


def test_an_even_dial_is_linear_whatever_the_neutral_face_and_the_word():
    neutral, full = normal(40), normal(5, 40, seed=1)
    read = neutral + INTENSITIES[:, None] * (full - neutral)[:, None]
    found = dial_figures(read_amounts(read, full, neutral), INTENSITIES)
    for figure, expected in ((found.correlation, 1), (found.monotone, 1), (found.flat, 0), (found.gain, 1)):
        np.testing.assert_allclose(figure, expected, atol=1e-12)


def test_a_planted_dead_zone_is_found_with_its_size():
    dead = np.clip(INTENSITIES, 0.5, None)  # nothing happens up to 0.5
    middle = np.where(INTENSITIES > 1.0, INTENSITIES - 0.75, np.minimum(INTENSITIES, 0.25))  # from 0.25 to 1
    found = dial_figures(np.stack([INTENSITIES, dead, middle]), INTENSITIES)
    np.testing.assert_allclose(found.flat, [0, 0.5 / 1.5, 0.75 / 1.5])
    np.testing.assert_allclose(found.monotone, [1, 4 / 6, 3 / 6])
    assert found.correlation[0] > found.correlation[1] > found.correlation[2]


def test_a_dial_that_never_moves_or_runs_backwards_is_flat_all_the_way():
    found = dial_figures(np.stack([np.zeros(7), -INTENSITIES]), INTENSITIES)
    np.testing.assert_allclose(found.flat, 1)
    np.testing.assert_allclose(found.monotone, 0)
    assert np.isnan(found.correlation[0])
    assert found.correlation[1] == pytest.approx(-1)


@pytest.mark.parametrize("intensities", [[0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
def test_intensities_that_are_no_dial_are_refused(intensities):
    with pytest.raises(ValueError, match="dial_figures: intensities"):
        dial_figures(np.zeros(len(intensities)), np.array(intensities))


# Image quality


def test_the_frechet_distance_of_normal_features_is_that_of_their_formula():
    first = normal(20000, 6)
    scaled = normal(20000, 6, seed=1) * 2.0 + 3.0
    # Means 3 apart in 6 features, standard deviations 1 and 2: 6 * (3^2 + (2 - 1)^2).
    assert frechet_distance(first, scaled) == pytest.approx(60, rel=0.02)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    few = normal(4, 6)  # fewer images than features: singular covariances
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="features of shapes"):
        frechet_distance(first, normal(5, 7))


def card(side=32, moved=0):
    image = np.full((side, side, 3), 220, np.uint8)
    image[8:24, 8 + moved : 24 + moved] = 40
    return image


def test_a_blurred_image_is_less_sharp_than_the_truth_and_a_pixel_of_movement_is_no_blur():
    truth = card()
    wide = np.pad(truth.astype(float), ((2, 2), (2, 2), (0, 0)), "edge")
    blurred = np.mean([[wide[i : i + 32, j : j + 32] for i in range(5)] for j in range(5)], (0, 1)).astype(np.uint8)
    assert edge_sharpness(truth, truth) == 1
    assert edge_sharpness(card(moved=1), truth) == pytest.approx(1, abs=0.01)
    assert edge_sharpness(blurred, truth) < 0.6
    assert np.isnan(edge_sharpness(truth, np.full_like(truth, 9)))


def test_only_what_stands_still_in_the_truth_counts_as_background():
    truth = np.stack([card(), card(moved=2), card()])
    still = still_parts(truth)
    assert not still[10, 9]
    assert still[0, 0]
    assert background_variation(truth, truth) == 0
    images = truth.copy()
    images[1, :4] += 30
    share = 4 * 32 / still.sum()
    assert background_variation(images, truth) == pytest.approx(share * np.std([0, 30, 0]), rel=1e-5)


def test_background_variation_of_avatars_ignores_faces():
    person = sample_identity(3)
    truth = np.stack([render(person, e.vector, 64) for e in parse_expressions("neutral; joy; anger")])
    still = still_parts(truth)
    assert 0.2 < still.mean() < 0.95
    faces, ground = truth.copy(), truth.copy()
    faces[0][~still] = 0
    assert background_variation(faces, truth) == background_variation(truth, truth) < 1.0  # a level by definition
    ground[0][still] = 0
    assert background_variation(ground, truth) > 20.0


# Intervals


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        values = normal(40, seed=seed) + 5.0
        found = bootstrap(mean_of(values), 40, seed=seed, resamples=300)
        assert found.low < found.value < found.high
        covered += found.low <= 5.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.98


def test_intervals_are_of_people_not_of_images():
    of_people = normal(20, 1)
    images = np.repeat(of_people, 50, axis=1)  # fifty equal images of each tell nothing more
    one, many = (bootstrap(mean_of(x), 20) for x in (of_people, images))
    assert (one.low, one.high) == pytest.approx((many.low, many.high))
    assert bootstrap(mean_of(of_people), 20) == one
    assert bootstrap(mean_of(of_people), 20, seed=1) != one


def test_people_without_a_value_are_left_out_and_one_person_has_no_interval():
    values = np.array([[1.0, np.nan], [3.0, 3.0], [np.nan, np.nan]])
    assert bootstrap(mean_of(values), 3).value == 2
    alone = bootstrap(mean_of(values[:1]), 1)
    assert (alone.value, np.isnan(alone.low), alone.excludes_zero) == (1, True, False)
    with pytest.raises(ValueError, match="0 people"):
        bootstrap(mean_of(values), 0)


def test_a_difference_is_beyond_noise_if_people_agree_on_it():
    first = normal(64) * 5
    assert paired_difference(first + 0.5 + 0.2 * normal(64, seed=2), first).excludes_zero
    assert not paired_difference(first, first[::-1]).excludes_zero
    with pytest.raises(ValueError, match="64 and 63 people"):
        paired_difference(first, first[1:])


def test_the_jackknife_gives_the_spread_of_a_mean_and_of_a_frechet_distance():
    values = np.random.default_rng(0).normal(2.0, 3.0, 50)
    found = jackknife(mean_of(values), 50)
    reach = 1.96 * values.std(ddof=1) / np.sqrt(50)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=1e-3)

    def of_people(seed):
        rng = np.random.default_rng(seed)
        here = rng.normal(size=(40, 4, 3)) + rng.normal(size=(40, 1, 3))
        there = here + rng.normal(1.0, 0.5, size=(40, 1, 3))
        return lambda people: frechet_distance(here[people].reshape(-1, 3), there[people].reshape(-1, 3))

    # The spread over many draws of the people, against what one draw says of it.
    spread = np.std([of_people(seed)(np.arange(40)) for seed in range(300)])
    reaches = [(one.high - one.value) / 1.96 for one in (jackknife(of_people(seed), 40) for seed in range(10))]
    assert np.mean(reaches) == pytest.approx(spread, rel=0.25)
    assert np.isnan(jackknife(mean_of(values), 2).low)
