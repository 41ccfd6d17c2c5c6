"""The exported sampler's reading of an image file: its orientation, and nothing else of its EXIF."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")

from genaffect_jax.interop.onnx.sampler import upright
from genaffect_jax.io import orientation


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_an_image_is_turned_as_its_orientation_says(turn: int, suffix: str) -> None:
    image = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    exif = Image.Exif()
    exif[274] = turn
    file = io.BytesIO()
    image.save(file, suffix, exif=exif)
    expected = orientation.upright(image, turn)
    np.testing.assert_array_equal(np.asarray(upright(Image.open(file))), np.asarray(expected))


def test_a_resolution_of_an_odd_type_does_not_matter() -> None:
    entries = struct.pack(">HHIHxx", 274, 3, 1, 3) + struct.pack(">HHII", 282, 1, 1, 5)
    file = io.BytesIO()
    image = Image.new("RGB", (8, 8))
    image.paste("white", (0, 0, 8, 4))
    image.save(file, "PNG", exif=b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4))
    assert np.asarray(upright(Image.open(file)))[:4].max() == 0
