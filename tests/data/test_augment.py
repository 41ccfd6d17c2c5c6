"""Augmentation is a function of its generator, keeps images whole and makes them various."""

from __future__ import annotations

import time

import numpy as np
import pytest

from genaffect_jax.data import augment as module
from genaffect_jax.data.augment import augment, random_scene


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return random_scene(rng(5), 64)


def test_the_same_generator_state_gives_the_same_bytes(image) -> None:
    for seed in range(20):
        np.testing.assert_array_equal(random_scene(rng(seed), 48), random_scene(rng(seed), 48))
        np.testing.assert_array_equal(augment(image, rng(seed)), augment(image, rng(seed)))


def test_images_differ_between_seeds_and_are_never_blank(image) -> None:
    scenes = [random_scene(rng(seed), 64) for seed in range(40)]
    assert len({s.tobytes() for s in scenes}) == 40
    assert sum(s.std() > 5 for s in scenes) >= 38
    assert len({augment(image, rng(seed)).tobytes() for seed in range(40)}) >= 36


def test_shape_and_type_are_kept_and_the_input_is_not_changed() -> None:
    wide = random_scene(rng(1), 60)[:40]
    before = wide.copy()
    for seed in range(20):
        changed = augment(wide, rng(seed))
        assert changed.shape == (40, 60, 3)
        assert changed.dtype == np.uint8
        assert not np.shares_memory(changed, wide)
    np.testing.assert_array_equal(wide, before)
    assert random_scene(rng(0), 1).shape == (1, 1, 3)


def test_mirror_twice_is_the_image(image) -> None:
    seed = next(s for s in range(99) if rng(s).random() >= 0.2)  # left-right only
    once = module._mirror(image, rng(seed))
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_array_equal(module._mirror(once, rng(seed)), image)


def test_moving_puts_the_middle_where_the_drawn_shift_says() -> None:
    dot = np.zeros((65, 65, 3), np.uint8)
    dot[30:35, 30:35] = 255
    seen = 0
    for seed in range(20):
        moved = module._move(dot, rng(seed))
        if any(corner.any() for corner in moved[::64, ::64].reshape(4, 3)):
            continue  # filled with a colour, among which the dot's centre of mass says nothing
        generator = rng(seed)
        generator.uniform(-30, 30), generator.uniform(-0.7, 0.7)
        shift = generator.uniform(-0.15, 0.15, 2) * 65
        weight = moved[..., 0].astype(float)
        rows, columns = np.mgrid[:65, :65]
        centre = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
        np.testing.assert_allclose(centre - 32, shift, atol=0.15)
        seen += 1
    assert seen >= 5


def test_recolouring_keeps_grey_images_grey_and_outlines_in_place(image) -> None:
    grey = np.repeat(image[..., :1], 3, -1)
    for seed in range(20):
        changed = module._recolour(grey, rng(seed)).astype(int)
        assert np.ptp(changed, axis=-1).max() <= 1
        flat = np.full((8, 8, 3), image[0, 0], np.uint8)
        assert len(np.unique(module._recolour(flat, rng(seed)).reshape(-1, 3), axis=0)) == 1


def test_other_types_and_shapes_are_refused(image) -> None:
    with pytest.raises(TypeError, match="float64, must be uint8"):
        augment(image / 255.0, rng(0))
    with pytest.raises(ValueError, match=r"\(64, 64\), must be"):
        augment(image[..., 0], rng(0))
    with pytest.raises(ValueError, match="size=0"):
        random_scene(rng(0), 0)


def test_an_image_costs_milliseconds() -> None:
    source = random_scene(rng(0), 128)
    for make in (lambda r: random_scene(r, 128), lambda r: augment(source, r)):
        start = time.process_time()
        for seed in range(50):
            make(rng(seed))
        assert (time.process_time() - start) / 50 < 0.012  # 2 ms here; a slow, shared machine may take some times that
