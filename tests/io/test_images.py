"""Reading image files: every kind of file becomes the same square RGB array, and bad ones say what is wrong."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.errors import DataError
from genaffect_jax.io.images import MAX_PIXELS, read_image


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def flat(value: object, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (32, 32), value)


def test_transparent_parts_are_laid_on_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", flat((200, 0, 0, 128), "RGBA"))
    np.testing.assert_allclose(read_image(path, 8)[4, 4], [227, 127, 127], atol=1)
    clear = save(tmp_path / "b.png", flat((10, 20, 30, 0), "RGBA"))
    assert (read_image(clear, 8) == 255).all()


def test_a_transparent_palette_colour_becomes_white_and_others_keep_their_colour(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([9, 9, 9, 0, 100, 200])
    image.paste(1, (16, 0, 32, 32))
    rgb = read_image(save(tmp_path / "a.png", image, transparency=0), 32)
    assert (rgb[:, :16] == 255).all()
    assert (rgb[:, 16:] == [0, 100, 200]).all()


@pytest.mark.parametrize(("mode", "value"), [("L", 100), ("LA", (100, 255)), ("P", 100), ("CMYK", (155, 155, 155, 0))])
def test_grey_palette_and_cmyk_images_become_rgb(tmp_path: Path, mode: str, value: object) -> None:
    image = Image.new(mode, (32, 32), value)
    if mode == "P":
        image.putpalette([v for v in range(256) for _ in range(3)])
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image)
    rgb = read_image(path, 16)
    assert rgb.shape == (16, 16, 3)
    assert rgb.dtype == np.uint8
    np.testing.assert_allclose(rgb, 100, atol=1)


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = np.repeat(np.array([[0, 257 * 50, 257 * 200, 65535]], np.uint16), 4, 0)
    for name in ("a.png", "a.tif"):
        rgb = read_image(save(tmp_path / name, Image.fromarray(values)), 4)
        assert rgb[0, :, 0].tolist() == [0, 50, 200, 255]


def test_floating_point_pixels_are_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.zeros((8, 8), np.float32)))
    with pytest.raises(DataError, match="floating-point"):
        read_image(path, 8)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show": the upper half becomes the right half
    rgb = read_image(save(tmp_path / "a.jpg", image, exif=exif, quality=95), 32)
    assert rgb[:, 20:].mean() > 250
    assert rgb[:, :12].mean() < 5


def test_the_centre_square_is_cut_out_and_not_squeezed(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), "red")
    image.paste("lime", (32, 0, 64, 32))
    assert (read_image(save(tmp_path / "a.png", image), 32) == [0, 255, 0]).all()


def test_a_large_jpeg_reads_like_its_png(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (800, 1)), np.tile(ramp[:, None], (1, 800))] * 2, -1)[..., :3])
    png = read_image(save(tmp_path / "a.png", image), 64).astype(int)
    jpeg = read_image(save(tmp_path / "a.jpg", image, quality=98), 64).astype(int)
    assert np.abs(png - jpeg).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif", "ppm"])
def test_common_formats_are_read(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", flat((60, 120, 240)))
    np.testing.assert_allclose(read_image(path, 8)[3, 3], [60, 120, 240], atol=6)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (8200, 200_000):  # above the limit here, and above Pillow's own
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        path = tmp_path / f"{side}.png"
        # No pixel data at all: only the header can be what the message speaks of.
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(DataError, match=f"too large.*{MAX_PIXELS}"):
            read_image(path, 8)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", Image.effect_noise((64, 64), 90)).read_bytes()
    jpeg = save(tmp_path / "whole.jpg", Image.effect_noise((64, 64), 90)).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for name, content, reason in (
        ("truncated.png", whole[: len(whole) // 2], "corrupt or truncated"),
        ("truncated.jpg", jpeg[: len(jpeg) // 2], "corrupt or truncated"),
        ("flipped.png", bytes(flipped), "corrupt or truncated"),
        ("text.png", b"this is no image", "not an image"),
        ("empty.png", b"", "not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name, 8)
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(DataError, match="not a file"):
            read_image(tmp_path / name, 8)
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "missing.png", 8)
