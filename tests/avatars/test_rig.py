"""Promises of the rig: every channel moves its own part, in proportion, and no blend turns a face inside out."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaffect_jax.avatars import render, rig, sample_identity
from genaffect_jax.avatars.canvas import _open_weights
from genaffect_jax.avatars.pose import Pose
from genaffect_jax.expressions.action_units import CHANNELS, DEGREES, INDEX, LOWEST, WIDTH, expression_vector, neutral

PERSON = dataclasses.replace(sample_identity(5), hair_style="bald", glasses="none", facial_hair="none")
UNITS = tuple(c for c in CHANNELS if c not in DEGREES)
# Parts that a unit may move; every other part must stay exactly where it is.
MOVES = {
    "AU1": {"brow"},
    "AU2": {"brow"},
    "AU4": {"brow"},
    "AU5": {"eye"},
    "AU6": {"eye", "cheek"},
    "AU7": {"eye"},
    "AU9": {"nose", "brow", "mouth"},
    "AU10": {"mouth", "nose"},
    "AU12": {"mouth", "cheek"},
    "AU14": {"mouth"},
    "AU15": {"mouth"},
    "AU16": {"mouth"},
    "AU17": {"mouth", "outline"},
    "AU18": {"mouth"},
    "AU19": {"mouth"},
    "AU20": {"mouth"},
    "AU23": {"mouth"},
    "AU24": {"mouth"},
    "AU25": {"mouth"},
    "AU26": {"mouth", "outline"},
    "AU27": {"mouth", "outline"},
    "AU43": {"eye"},
    "gaze_yaw": {"eye"},
    "gaze_pitch": {"eye"},
    "head_yaw": set(),
    "head_pitch": set(),
    "head_roll": set(),
}
SIDED = tuple(c for c in UNITS if c.endswith("L"))


def vector(**channels: float) -> np.ndarray:
    return expression_vector(channels)


def parts(expression: np.ndarray) -> dict[str, np.ndarray]:
    """Every control point of the rig as one array per part and side (the teeth, which lips hide, left out)."""
    face = rig.solve(PERSON, expression)
    mouth = face.mouth
    found = {"outline": face.outline, "nose": np.array([face.nose_tip, *face.nose_wings.values()])}
    for side, eye in face.eyes.items():
        found[f"eye{side}"] = np.concatenate([eye.upper, eye.lower, eye.fold, [eye.iris]])
        found[f"brow{side}"] = face.brows[side]
        found[f"cheek{side}"] = np.array([[face.cheeks[side]]])
    lips = [mouth.outer_upper, mouth.inner_upper, mouth.inner_lower, mouth.outer_lower]
    found["mouth"] = np.concatenate([*lips, [(0.0, mouth.tongue_tip), mouth.tongue[:2], mouth.tongue[2:]]])
    return found


def blocks(image: np.ndarray) -> np.ndarray:
    """Means over 8 x 8 pixels, so that a thin line that moves past its own width still counts as moving away."""
    return image.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_moves_only_its_own_parts(channel):
    allowed = MOVES[channel if channel in MOVES else channel[:-1]]
    rest, moved = parts(neutral()), parts(vector(**{channel: 1.0}))
    changed = {name for name in rest if not np.array_equal(rest[name], moved[name])}
    assert {name.rstrip("LR") for name in changed} == allowed


@pytest.mark.parametrize("channel", UNITS)
def test_half_the_intensity_is_half_the_movement(channel):
    rest, half, full = parts(neutral()), parts(vector(**{channel: 0.5})), parts(vector(**{channel: 1.0}))
    for name in rest:
        np.testing.assert_allclose(half[name] - rest[name], 0.5 * (full[name] - rest[name]), atol=1e-9, err_msg=name)


@pytest.mark.parametrize("channel", UNITS)
def test_a_unit_moves_in_proportion_whatever_else_the_face_does(channel):
    others = np.random.Generator(np.random.PCG64(7)).random(WIDTH).astype(np.float32) * 0.8
    faces = []
    for value in (0.0, 0.5, 1.0):
        others[INDEX[channel]] = value
        faces.append(parts(others))
    for name in faces[0]:
        np.testing.assert_allclose(faces[1][name], 0.5 * (faces[0][name] + faces[2][name]), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_image_moves_away_from_neutral_as_intensity_grows(channel):
    rest = blocks(render(PERSON, neutral()))
    distances = [np.abs(blocks(render(PERSON, vector(**{channel: v}))) - rest).sum() for v in (0.25, 0.5, 0.75, 1.0)]
    # 2 % of slack: a closing lid covers the last of the eye with skin of nearly the same lightness.
    assert all(b > 0.98 * a for a, b in pairwise(distances)), distances
    assert distances[0] > 30.0
    assert distances[3] > 1.8 * distances[0]


@pytest.mark.parametrize("channel", SIDED)
def test_the_two_sides_of_a_unit_are_separate(channel):
    rest = parts(neutral())
    left, right = parts(vector(**{channel: 1.0})), parts(vector(**{channel[:-1] + "R": 1.0}))
    for name in ("brow", "eye", "cheek"):
        assert np.array_equal(left[name + "R"], rest[name + "R"])
        assert np.array_equal(right[name + "L"], rest[name + "L"])
        np.testing.assert_allclose(
            np.abs(left[name + "L"] - rest[name + "L"]), np.abs(right[name + "R"] - rest[name + "R"])
        )
    corner_right, corner_left = 0, 8  # the person's right corner is on the left of the image
    assert np.array_equal(left["mouth"][corner_right], rest["mouth"][corner_right])
    assert np.array_equal(right["mouth"][corner_left], rest["mouth"][corner_left])


@pytest.mark.parametrize("unit", ["AU1", "AU2", "AU4", "AU5", "AU6", "AU7", "AU43"])
def test_the_persons_left_is_the_right_half_of_the_image(unit):
    change = np.abs(render(PERSON, vector(**{unit + "L": 1.0})).astype(int) - render(PERSON, neutral())).max(axis=2)
    assert change[:, 128:].sum() > 500
    assert change[:, :126].max() == 0


def test_brow_units_leave_the_mouth_and_mouth_units_leave_the_brows():
    rest = render(PERSON, neutral())
    brows = render(PERSON, vector(AU1=1, AU2=1, AU4=1))
    mouth = render(PERSON, vector(AU12=1, AU15=1, AU25=1, AU26=1, AU27=1, AU18=1, AU20=1, AU24=1))
    assert np.array_equal(brows[125:], rest[125:])
    assert np.array_equal(mouth[:100], rest[:100])


@pytest.mark.parametrize("seed", [5, 9, 14, 22])
def test_background_and_clothes_do_not_change_with_the_face(seed):
    person = dataclasses.replace(sample_identity(seed), hair_style="short")
    loud = np.where(LOWEST < 0.0, 0.0, 1.0).astype(np.float32)
    rest, changed = render(person, neutral()), render(person, loud)
    y, x = np.mgrid[0:256, 0:256]
    outside = (np.hypot((x - 128.0) / 76.0, (y - 132.0) / 104.0) > 1.0) | (y >= 236)
    assert outside.mean() > 0.5
    assert np.array_equal(rest[outside], changed[outside])
    assert not np.array_equal(rest, changed)


@pytest.mark.parametrize("turn", [{"head_yaw": 1.0}, {"head_pitch": -1.0}, {"head_roll": -1.0}])
def test_the_background_stays_when_the_head_turns(turn):
    rest, turned = render(PERSON, neutral()), render(PERSON, vector(**turn))
    y, x = np.mgrid[0:256, 0:256]
    away = np.hypot(x - 128.0, y - 117.0) > 112.0
    assert np.array_equal(rest[away], turned[away])


def test_a_turned_head_shows_parallax():
    ahead, left = Pose(neutral()), Pose(vector(head_yaw=1.0))
    nose, eye_near, eye_far = np.array([[0.0, 20.0]]), np.array([[-28.0, 0.0]]), np.array([[28.0, 0.0]])
    shift = [float((left.face(p, lift) - ahead.face(p, lift))[0, 0]) for p, lift in ((nose, 15.0), (eye_near, 0.0))]
    outline = float((left.layer(nose, 5.0) - ahead.layer(nose, 5.0))[0, 0])
    assert shift[0] > shift[1] > outline > 0.0  # towards the person's left, nearest parts furthest
    span = left.face(eye_far)[0, 0] - left.face(nose)[0, 0], left.face(nose)[0, 0] - left.face(eye_near)[0, 0]
    assert span[0] < span[1]  # the far side is foreshortened


intensities = st.lists(st.floats(0.0, 1.0, width=32), min_size=WIDTH, max_size=WIDTH)


@settings(max_examples=150, deadline=None)
@given(values=intensities, seed=st.integers(0, 10_000))
def test_no_blend_turns_lids_or_lips_inside_out(values, seed):
    expression = np.array(values, np.float32)
    face = rig.solve(sample_identity(seed), expression)
    for eye in face.eyes.values():
        upper, lower = (_open_weights(7) @ lid for lid in (eye.upper, eye.lower))
        assert (upper[:, 1] <= lower[:, 1] + 0.35).all()
    mouth = face.mouth
    chains = [mouth.outer_upper, mouth.inner_upper, mouth.inner_lower, mouth.outer_lower]
    assert (np.diff(mouth.inner_upper[:, 0]) > 0.0).all()
    for above, below in pairwise(chains):
        assert (below[:, 1] - above[:, 1] >= -1e-9).all()
    for teeth in (mouth.upper_teeth, mouth.lower_teeth):
        assert teeth.shape == mouth.inner_upper.shape
    assert (mouth.upper_teeth[:, 1] >= mouth.inner_upper[:, 1] - 1e-9).all()
    assert (mouth.lower_teeth[:, 1] <= mouth.inner_lower[:, 1] + 1e-9).all()


def test_a_closed_eye_is_closed_whatever_the_other_lid_units_do():
    for extra in ({}, {"AU5": 1.0}, {"AU6": 1.0, "AU7": 1.0}, {"gaze_pitch": -1.0}):
        for eye in rig.solve(PERSON, vector(AU43=1.0, **extra)).eyes.values():
            np.testing.assert_allclose(eye.upper, eye.lower, atol=1e-9)
            assert eye.aperture == 0.0


def test_teeth_show_in_a_smile_with_parted_lips_and_hide_behind_closed_ones():
    def white(expression: np.ndarray) -> int:
        mouth = render(PERSON, expression)[152:186, 100:156].astype(int)
        return int((mouth.min(axis=2) > 225).sum())

    assert white(vector(AU12=1.0)) == 0
    assert white(vector(AU12=1.0, AU25=1.0)) > 60


def test_rendering_does_not_touch_its_arguments():
    expression = vector(AU12=0.5)
    before = expression.copy()
    render(PERSON, expression, 64)
    assert np.array_equal(expression, before)
