"""Promises of the sampled people: who they are is plain data, varied, reproducible, and shows in the image."""

import dataclasses
import json

import numpy as np
import pytest

from genaffect_jax.avatars import Identity, palette, render, sample_identity
from genaffect_jax.avatars import identity as identities
from genaffect_jax.expressions.action_units import neutral

CHOICES = {
    "iris_colour": tuple(palette.IRIS_COLOURS),
    "lip_colour": tuple(palette.LIP_COLOURS),
    "hair_style": identities.HAIR_STYLES,
    "hair_colour": tuple(palette.HAIR_COLOURS),
    "facial_hair": identities.FACIAL_HAIR,
    "glasses": identities.GLASSES,
    "glasses_colour": tuple(palette.FRAME_COLOURS),
    "earrings": identities.EARRINGS,
    "outfit": identities.OUTFITS,
    "outfit_colour": tuple(palette.CLOTH_COLOURS),
    "outfit_accent": tuple(palette.CLOTH_COLOURS),
    "background": identities.BACKGROUNDS,
    "background_colour": tuple(palette.BACKGROUND_COLOURS),
}
# A person who wears everything, so that every parameter has something to act on.
DRESSED = dataclasses.replace(
    sample_identity(5),
    skin_tone=0.3,
    mole_size=1.6,
    mole_x=24.0,
    mole_y=30.0,
    freckles=0.4,
    blush=0.5,
    wrinkles=0.2,
    lash_length=0.5,
    lip_tint=0.5,
    lip_colour="berry",
    hair_style="side_part",
    hair_colour="brown",
    hair_grey=0.1,
    facial_hair="goatee",
    facial_hair_density=0.5,
    glasses="round",
    glasses_colour="red",
    earrings="hoop",
    outfit="stripes",
)
# Numeric parameters and how far each is moved.
STEPS = {
    "face_width": 0.05,
    "jaw_width": 0.1,
    "chin_width": 0.3,
    "chin_length": 4.0,
    "cheek_fullness": 1.0,
    "skin_tone": 0.4,
    "skin_undertone": 0.9,
    "blush": 0.4,
    "freckles": 0.4,
    "mole_x": -8.0,
    "mole_y": 8.0,
    "mole_size": 0.9,
    "wrinkles": 0.7,
    "ear_size": 0.25,
    "ear_height": 4.0,
    "eye_size": 0.12,
    "eye_openness": -0.2,
    "eye_spacing": 3.0,
    "eye_height": 3.0,
    "eye_tilt": 3.0,
    "iris_size": 0.15,
    "lash_length": 0.5,
    "eyelid_fold": -0.5,
    "brow_thickness": 0.4,
    "brow_length": 0.12,
    "brow_height": 3.0,
    "brow_arch": 3.0,
    "brow_tilt": 3.0,
    "nose_width": 0.25,
    "nose_length": 4.0,
    "nose_bridge": -0.6,
    "mouth_width": 0.14,
    "mouth_height": 3.0,
    "upper_lip": 0.5,
    "lower_lip": 0.5,
    "lip_tint": 0.4,
    "hair_grey": 0.7,
    "hair_volume": 0.3,
    "hair_line": 4.0,
    "hair_part": None,
    "facial_hair_density": 0.5,
    "neck_width": 0.2,
    "shoulder_width": 0.12,
}
FIELDS = tuple(f.name for f in dataclasses.fields(Identity))


def image(identity: Identity) -> np.ndarray:
    return render(identity, neutral(), 256).astype(np.int32)


def test_every_parameter_is_covered_below():
    assert set(FIELDS) == set(CHOICES) | set(STEPS)
    assert len(FIELDS) >= 30


@pytest.mark.parametrize("name", FIELDS)
def test_each_parameter_visibly_changes_the_image(name):
    value = getattr(DRESSED, name)
    if name in CHOICES:
        other = next(choice for choice in CHOICES[name] if choice != value)
    elif name == "hair_part":
        other = -value
    else:
        other = value + STEPS[name]
    change = np.abs(image(dataclasses.replace(DRESSED, **{name: other})) - image(DRESSED)).max(axis=2)
    assert (change > 9).sum() >= 8, f"{name}: {value} -> {other} changes {(change > 9).sum()} pixels"


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_draws_its_own_image(name):
    base = DRESSED if name not in ("outfit_accent",) else dataclasses.replace(DRESSED, hair_style="beanie")
    images = {render(dataclasses.replace(base, **{name: choice}), neutral(), 128).tobytes() for choice in CHOICES[name]}
    assert len(images) == len(CHOICES[name])


def test_a_seed_is_always_the_same_person_and_another_seed_another():
    people = [sample_identity(seed) for seed in range(200)]
    assert people == [sample_identity(seed) for seed in range(200)]
    assert len(set(people)) == 200


def test_an_identity_survives_json_unchanged():
    for seed in range(50):
        person = sample_identity(seed)
        assert Identity(**json.loads(json.dumps(dataclasses.asdict(person)))) == person


def test_people_differ_in_skin_age_presentation_and_style():
    people = [sample_identity(seed) for seed in range(1000)]
    tones = np.array([p.skin_tone for p in people])
    assert all(((tones >= low) & (tones < low + 0.25)).mean() > 0.15 for low in (0.0, 0.25, 0.5, 0.75))
    assert 0.25 < np.mean([p.wrinkles == 0.0 for p in people]) < 0.85
    assert np.mean([p.wrinkles > 0.5 for p in people]) > 0.08
    assert 0.05 < np.mean([p.hair_grey > 0.4 for p in people]) < 0.5
    assert 0.1 < np.mean([p.facial_hair != "none" for p in people]) < 0.5
    assert 0.1 < np.mean([p.lip_tint > 0.0 for p in people]) < 0.5
    for name, choices in CHOICES.items():
        assert {getattr(p, name) for p in people} == set(choices), name


def test_no_parameter_decides_another_alone():
    people = [sample_identity(seed) for seed in range(2000)]
    long_hair = [p for p in people if p.hair_style in ("long_straight", "long_wavy", "bob")]
    assert any(p.facial_hair != "none" for p in long_hair)
    assert any(p.facial_hair == "none" for p in long_hair)
    assert any(p.skin_tone > 0.7 and p.hair_colour not in ("black", "espresso", "brown") for p in people)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="-1: must be 0 or more"):
        sample_identity(-1)
