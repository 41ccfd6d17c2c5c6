"""Contact sheets show every image unchanged; image files are whole or absent."""

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.io.image_grid import contact_sheet, write_png


def images(count, side=48):
    return [np.full((side, side, 3), (17 * i + 3, 200 - 11 * i, 90), np.uint8) for i in range(count)]


def test_every_image_stands_on_the_sheet_unchanged():
    shown = images(7)
    sheet = contact_sheet(shown, [f"image {i}" for i in range(7)], columns=3)
    for image in shown:
        color = image[0, 0]
        rows, columns = np.nonzero((sheet == color).all(-1))
        assert len(rows) == 48 * 48
        assert (np.ptp(rows), np.ptp(columns)) == (47, 47)


def test_labels_are_drawn_and_long_ones_stay_inside_their_cell():
    blank = contact_sheet(images(1), [""])
    short = contact_sheet(images(1), ["joy"])
    long = contact_sheet(images(1), ["0.6*joy + 0.4*surprise + 0.2*something"])
    assert blank.shape == short.shape == long.shape
    assert (short != blank).any()
    changed = np.nonzero((long != blank).any(-1))[1]
    assert changed.min() >= 4
    assert changed.max() < 4 + 48


@pytest.mark.parametrize(
    ("given", "labels"), [([], []), (images(2), ["one"]), ([*images(1), *images(1, 32)], ["a", "b"])]
)
def test_a_sheet_that_makes_no_sense_is_refused(given, labels):
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet(given, labels)


def test_a_png_keeps_its_pixels_and_text(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    write_png(image, tmp_path / "new" / "a.png", {"Comment": "generated image"})
    with Image.open(tmp_path / "new" / "a.png") as read:
        assert read.text == {"Comment": "generated image"}
        np.testing.assert_array_equal(np.asarray(read), image)


def test_a_png_that_is_written_fast_keeps_its_pixels_and_text_and_is_compressed(tmp_path):
    sheet = contact_sheet(images(8), [f"{i}" for i in range(8)])
    write_png(sheet, tmp_path / "a.png", {"Comment": "generated image"}, fast=True)
    with Image.open(tmp_path / "a.png") as read:
        assert read.text == {"Comment": "generated image"}
        np.testing.assert_array_equal(np.asarray(read), sheet)
    assert (tmp_path / "a.png").stat().st_size < sheet.nbytes / 4


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_png(images(1)[0], tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(TypeError):
        write_png(np.zeros((4, 4, 7), np.uint8), tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (5, 5), (8, 4), (9, 3), (12, 4), (13, 7), (17, 6)])
def test_sheets_leave_few_places_empty(count, columns) -> None:
    sheet, row = (
        contact_sheet(images(count), [""] * count),
        contact_sheet(images(columns), [""] * columns, columns=columns),
    )
    assert sheet.shape[1] == row.shape[1]
