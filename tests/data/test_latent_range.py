"""The range of latents: people of the same kind lie within, other images beyond; few people say nothing."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from genaffect_jax.data import latent_range
from genaffect_jax.data.latent_range import FEWEST_PEOPLE, MOST_IMAGES, LatentRange, choose_images
from genaffect_jax.errors import DataError

SHAPE = (6, 6, 4)


def people(count: int, each: int, seed: int):
    """Latents of a kind: combinations of 12 patterns with a little noise; three images of a person are alike."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).normal(size=(12, *SHAPE))
    looks = np.repeat(rng.normal(size=(count, 12)), each, 0) + 0.3 * rng.normal(size=(count * each, 12))
    latents = np.tensordot(looks, patterns, 1) + 0.1 * rng.normal(size=(count * each, *SHAPE))
    return latents.astype(np.float32), [f"p{i // each}" for i in range(count * each)]


@pytest.fixture(scope="module")
def known():
    found = LatentRange.fit(*people(80, 3, seed=0))
    assert found is not None
    return found


def test_unseen_people_of_the_same_kind_are_within_and_other_images_beyond(known):
    unseen = known.distances(people(300, 1, seed=1)[0])
    assert (unseen > 1).mean() <= 0.01
    assert unseen.max() > 0.7  # the limit is no wider than it has to be
    rng = np.random.default_rng(2)
    assert (known.distances(rng.normal(size=(50, *SHAPE))) > 1).all()
    assert (known.distances(np.roll(people(50, 1, seed=3)[0], 2, 1)) > 1).all()
    assert known.distances(np.full((1, *SHAPE), 3.0)) > 1


def test_the_limit_is_wider_where_fewer_people_are_known():
    limits = [found.limit for n in (8, 20, 80) if (found := LatentRange.fit(*people(n, 3, seed=0)))]
    assert limits == sorted(limits, reverse=True)
    assert len(limits) == 3


def test_too_few_people_give_no_range():
    assert LatentRange.fit(*people(FEWEST_PEOPLE - 1, 9, seed=0)) is None
    assert LatentRange.fit(*people(FEWEST_PEOPLE, 1, seed=0)) is not None


def test_images_without_finite_latents_and_equal_images_are_no_harm():
    latents, names = people(20, 2, seed=0)
    expected = LatentRange.fit(latents[2:], names[2:])
    latents[:2] = np.nan
    found = LatentRange.fit(latents, names)
    assert_allclose(found.components, expected.components)
    equal = LatentRange.fit(np.ones((20, *SHAPE)), [str(i) for i in range(20)])
    assert equal.distances(np.ones((1, *SHAPE))) <= 1 < equal.distances(np.zeros((1, *SHAPE)))
    assert not known_nan(found) <= 1  # what is not finite is not usual


def known_nan(found: LatentRange) -> float:
    return float(found.distances(np.full((1, *SHAPE), np.nan))[0])


def test_large_latents_are_averaged_to_a_bounded_size():
    latents = np.random.default_rng(0).normal(size=(10, 40, 40, 2)).astype(np.float32)
    found = LatentRange.fit(latents, [str(i) for i in range(10)])
    assert found.mean.shape == (13 * 13 * 2,)
    assert_allclose(found.mean.reshape(13, 13, 2)[0, 1], latents[:, :3, 3:6].mean((0, 1, 2)), atol=1e-5)
    with pytest.raises(DataError, match="of 338 numbers an image, found 8"):
        found.distances(np.zeros((1, 2, 2, 2)))


def test_a_written_range_is_read_as_it_was_and_damage_is_named(known, tmp_path):
    file = tmp_path / "range.safetensors"
    known.write(file)
    latents = people(4, 1, seed=5)[0]
    assert_allclose(LatentRange.read(file).distances(latents), known.distances(latents))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"range.safetensors: damaged"):
        LatentRange.read(file)


def test_images_of_many_people_are_chosen_before_several_of_one():
    names = [f"p{i % 7}" for i in range(70)] + ["other"] * 50
    few = choose_images(names, [f"p{i}" for i in range(7)])
    assert few == list(range(70))
    many = [f"p{i // 4}" for i in range(4 * (MOST_IMAGES - 100))]
    chosen = choose_images(many, sorted(set(many)))
    assert chosen == choose_images(many, sorted(set(many)))
    assert len(set(chosen)) == MOST_IMAGES
    counts = np.unique([many[i] for i in chosen], return_counts=True)[1]
    assert len(counts) == MOST_IMAGES - 100
    assert set(counts.tolist()) == {1, 2}
    assert np.ptp([i % 4 for i in chosen]) == 3  # not always the same image of a person


def test_the_quantile_of_students_distribution_is_that_of_tables():
    # Quantiles 0.999 (one-sided) of printed tables.
    for freedom, expected in ((7, 4.785), (10, 4.144), (20, 3.552), (60, 3.232), (10_000, 3.091)):
        assert_allclose(latent_range._student(0.999, freedom), expected, rtol=0.01)
