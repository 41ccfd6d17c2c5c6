"""Promises of the drawing call: the same bytes everywhere, any size, bad input refused."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.avatars.canvas import GRID, Canvas, _chain_weights, _closed_weights, ellipse
from genaffect_jax.expressions.action_units import WIDTH, expression_vector, neutral

EXPRESSIONS = {
    "neutral": {},
    "joy": {"AU6": 0.8, "AU12": 1.0, "AU25": 0.8},
    "turned": {"AU1": 1.0, "AU26": 0.7, "AU43L": 0.5, "head_yaw": 0.6, "head_pitch": -0.3, "head_roll": 0.4},
}
PINNED = {
    (0, "neutral", 256): "947bbfa12bd86431",
    (0, "joy", 256): "50c1c68dafddd5fd",
    (0, "turned", 96): "95c8f5a423b23467",
    (7, "neutral", 256): "a7a178396b0ddfc2",
    (7, "joy", 256): "88f6cf664b03e70d",
    (7, "turned", 96): "1737feecddc2ec15",
    (36, "neutral", 256): "f59e10fea8fbd49a",
    (36, "joy", 256): "b95adb5e683a7b87",
    (36, "turned", 96): "170d53715e0b50a4",
    (51, "neutral", 256): "1a231b266069ac9e",
    (51, "joy", 256): "96e7eb29afe9918c",
    (51, "turned", 96): "6f837c5a6169017e",
}


def digest(seed: int, name: str, size: int) -> str:
    image = render(sample_identity(seed), expression_vector(EXPRESSIONS[name]), size)
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("seed", "name", "size"), PINNED)
def test_the_same_arguments_give_the_same_bytes_on_every_machine(seed, name, size):
    assert digest(seed, name, size) == PINNED[seed, name, size]


def test_rendering_twice_gives_the_same_image():
    person, expression = sample_identity(3), expression_vector(EXPRESSIONS["joy"])
    first = render(person, expression, 128)
    render(sample_identity(4), neutral(), 128)
    second = render(person, expression, 128)
    assert np.array_equal(first, second)
    assert first is not second


@pytest.mark.parametrize("size", [32, 64, 100, 256, 300])
def test_an_image_of_any_size_shows_the_same_face(size):
    person, expression = sample_identity(8), expression_vector(EXPRESSIONS["joy"])
    image = render(person, expression, size)
    assert image.dtype == np.uint8
    assert image.shape == (size, size, 3)

    def coarse(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX), np.float32)

    assert np.abs(coarse(image) - coarse(render(person, expression, 256))).mean() < 2.5


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (np.zeros(WIDTH - 1, np.float32), "expected"),
        (np.full(WIDTH, 1.5, np.float32), "out of range"),
        (np.full(WIDTH, np.nan, np.float32), "out of range"),
    ],
)
def test_an_invalid_expression_is_refused(expression, message):
    with pytest.raises(ValueError, match=message):
        render(sample_identity(0), expression)


def test_a_tiny_size_is_refused():
    with pytest.raises(ValueError, match="avatar size 8: must be 16 pixels or more"):
        render(sample_identity(0), neutral(), 8)


def test_spline_weights_are_exact_so_that_no_machine_rounds_them_differently():
    for weights in (_closed_weights(9) * GRID, _chain_weights((7, 4)) * GRID):
        assert np.array_equal(weights * 1024.0, np.rint(weights * 1024.0))
        assert np.array_equal(weights.sum(axis=1), np.ones(len(weights)))


def test_curves_pass_through_their_control_points():
    points = np.random.Generator(np.random.PCG64(0)).random((6, 2))
    np.testing.assert_allclose((_closed_weights(6) @ points)[::8] * GRID, points)
    np.testing.assert_allclose((_chain_weights((6,)) @ points)[::8] * GRID, points)


def test_a_clip_hides_what_lies_outside_it():
    canvas = Canvas(64)
    canvas.fill(ellipse(128.0, 128.0, 400.0, 400.0), (255, 255, 255))
    inside = canvas.clip(ellipse(128.0, 128.0, 60.0, 60.0))
    canvas.fill(ellipse(128.0, 128.0, 200.0, 200.0), (0, 0, 0), 1.0, inside)
    y, x = np.mgrid[0:64, 0:64] * 4.0 + 2.0
    radius = np.hypot(x - 128.0, y - 128.0)
    pixels = canvas.render()
    assert (pixels[radius > 66.0] == 255).all()
    assert (pixels[radius < 54.0] == 0).all()


def test_shapes_cover_each_other_in_the_order_in_which_they_are_drawn_whatever_their_form():
    """Shapes of one form are prepared together, so the order must survive the regrouping."""
    canvas = Canvas(64)
    square = np.array([(40.0, 40.0), (216.0, 40.0), (216.0, 216.0), (40.0, 216.0)])
    canvas.fill(ellipse(128.0, 128.0, 400.0, 400.0), (255, 255, 255))
    canvas.fill(square, (200, 0, 0))
    canvas.stroke(np.array([(20.0, 128.0), (236.0, 128.0)]), [30.0, 30.0], (0, 200, 0))
    canvas.fill(ellipse(128.0, 128.0, 20.0, 20.0), (0, 0, 200))
    first = canvas.render().copy()
    places = {(32, 32): (0, 0, 200), (32, 12): (0, 200, 0), (16, 32): (200, 0, 0), (2, 2): (255, 255, 255)}
    assert {place: tuple(first[place].tolist()) for place in places} == places
    canvas.stroke(np.array([(128.0, 20.0), (128.0, 236.0)]), [10.0, 10.0], (9, 9, 9))
    changed = (canvas.render() != first).any(axis=2)
    assert changed[20, 32]  # a second rendering adds what is new
    assert not changed[:, :26].any()  # and draws nothing twice
