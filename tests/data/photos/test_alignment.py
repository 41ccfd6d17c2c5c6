"""Geometry of aligned images: the five points land on the template, ArcFace's square where encoders look for it."""

import numpy as np
import pytest
from insightface.utils import face_align
from PIL import Image
from support.face_detectors import photo, points_of

from genaffect_jax.config.encoders import ARCFACE_CROP
from genaffect_jax.data.photos.alignment import ARCFACE_POINTS, TEMPLATE, alignment_of, warp

FACES = [((120.0, 100.0), 80.0, 0.0), ((150.5, 140.25), 130.0, 25.0), ((90.0, 160.0), 50.0, -70.0)]


def smooth_photo(side=300):
    """A photo without fine detail, which resampling hardly changes."""
    small = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("face", FACES)
def test_the_five_points_land_on_the_template(face):
    alignment = alignment_of(points_of(*face))
    np.testing.assert_allclose(alignment.apply(points_of(*face)), TEMPLATE, atol=1e-9)
    assert alignment.face_side == pytest.approx(face[1])


def test_the_transform_is_insightfaces_own_for_points_that_do_not_fit_exactly():
    points = points_of(*FACES[1]) + np.random.default_rng(1).normal(0, 4, (5, 2))
    matrix = face_align.estimate_norm(points.astype(np.float32), 112)
    theirs = points @ matrix[:, :2].T + matrix[:, 2]
    left, top, side = ARCFACE_CROP
    ours = (alignment_of(points).apply(points) - [left, top]) / side * 112 - 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert np.abs(theirs - ARCFACE_POINTS).max() > 1  # else any fit would do


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("size", [256, 512])
def test_the_square_of_an_aligned_image_is_arcfaces_own_alignment(face, size):
    image = smooth_photo()
    aligned = warp(image, alignment_of(points_of(*face)), size)
    first, side = int(size * ARCFACE_CROP[0]), int(size * ARCFACE_CROP[2])
    square = aligned[first : first + side, first : first + side]
    ours = np.asarray(Image.fromarray(square).resize((112, 112), Image.Resampling.BOX)).astype(int)
    theirs = face_align.norm_crop(image, points_of(*face).astype(np.float32), 112)
    assert np.abs(ours - theirs).mean() < 1.0
    assert np.abs(ours - theirs).max() < 10
    assert theirs.std() > 20


def test_every_point_of_the_image_shows_its_point_of_the_photo():
    for face in FACES:
        aligned = warp(photo(300, 300, face), alignment_of(points_of(*face)), 128).astype(float)
        share = (np.arange(128) + 0.5) / 128
        wanted = 255 * (share[24:104] - ARCFACE_CROP[0]) / ARCFACE_CROP[2]
        np.testing.assert_allclose(aligned[24:104, 24:104, 0], np.broadcast_to(wanted, (80, 80)), atol=4)
        np.testing.assert_allclose(aligned[24:104, 24:104, 1], np.broadcast_to(wanted[:, None], (80, 80)), atol=4)


@pytest.mark.parametrize("side", [800.0, 90.0])
def test_large_photos_are_averaged_not_sampled(side):
    stripes = np.zeros((1500, 1500, 3), np.uint8)
    stripes[:, ::2] = 200
    aligned = warp(stripes, alignment_of(points_of((750, 750), side, 10.0)), 64)
    assert np.abs(aligned.astype(int) - 100).max() <= 12


def test_beyond_the_photo_its_edge_goes_on():
    alignment = alignment_of(points_of((0.0, 100.0), 100.0))
    image = np.full((200, 200, 3), 30, np.uint8)
    image[:, :10] = 220
    aligned = warp(image, alignment, 64)
    assert aligned[:, :30].min() > 200
    assert alignment.inside(200, 200) == pytest.approx(0.5, abs=0.03)
    assert alignment_of(points_of((100.0, 100.0), 90.0)).inside(200, 200) == 1.0


@pytest.mark.parametrize(
    ("points", "words"),
    [(np.zeros((5, 2)), "all in one place"), (np.zeros((4, 2)), "shape"), (np.full((5, 2), np.nan), "finite")],
)
def test_points_that_are_no_face_are_refused(points, words):
    with pytest.raises(ValueError, match=words):
        alignment_of(points)
