"""Reading image files: every kind of file becomes the same square RGB array, and bad ones say what is wrong."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genaffect_jax.errors import DataError
from genaffect_jax.io.images import MAX_PIXELS, read_image


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def flat(value: object, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (32, 32), value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, bits: int, colour: int, row: bytes, *chunks: bytes) -> Path:
    """A PNG of 8 x 8 pixels whose rows are all the same bytes."""
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + data + chunk(b"IEND", b""))
    return path


def tiff(path: Path, bits: int, data: bytes, white: int = 1, sample_format: int = 1, colours: bytes = b"") -> Path:
    """An uncompressed TIFF of 8 x 8 pixels with one channel; `white` is the photometric interpretation."""
    words = [(256, 8), (257, 8), (258, bits), (259, 1), (262, white), (277, 1), (278, 8), (339, sample_format)]
    entries = [struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in words]
    entries += [struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHII", 279, 4, 1, len(data))]
    if colours:
        entries.append(struct.pack("<HHII", 320, 3, len(colours) // 2, 8 + len(data)))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    start = 8 + len(data) + len(colours)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data + colours + directory)
    return path


def half(suffix: str, path: Path, orientation: int, **options: object) -> Path:
    """White above black, to be turned."""
    image = flat("black")
    image.paste("white", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path / f"a.{suffix}", image, exif=exif, **options)


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_the_orientation_is_applied_in_every_format_that_has_one(tmp_path: Path, suffix: str) -> None:
    rgb = read_image(half(suffix, tmp_path, 6), 32)
    assert rgb[:, 20:].mean() > 245
    assert rgb[:, :12].mean() < 10


def test_compressed_and_paged_tiffs_are_turned_too_and_show_their_first_page(tmp_path: Path) -> None:
    more = [flat("red")]
    for name, options in (("lzw", {"compression": "tiff_lzw"}), ("big", {"big_tiff": True, "save_all": True})):
        (tmp_path / name).mkdir()
        pages = {"append_images": more} if "save_all" in options else {}
        rgb = read_image(half("tif", tmp_path / name, 6, **options, **pages), 32)
        assert rgb[:, 20:].min() == 255
        assert rgb[:, :12].max() == 0


@pytest.mark.parametrize("compressed", [False, True])
def test_the_orientation_of_xmp_counts_where_exif_has_none(tmp_path: Path, compressed: bool) -> None:
    image = flat("black")
    image.paste("white", (0, 0, 32, 16))
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>', zip=compressed)
    rgb = read_image(save(tmp_path / "a.png", image, pnginfo=info), 32)
    assert rgb[:, 20:].min() == 255
    assert rgb[:, :12].max() == 0


def test_odd_exif_tags_neither_refuse_an_image_nor_turn_it_wrongly(load_benchmark) -> None:
    read, faults = load_benchmark("fuzz_image_metadata").run(1000, seed=1)
    assert sum(read.values()) == 1000
    assert faults == []


def test_much_or_damaged_metadata_does_not_refuse_a_png(tmp_path: Path) -> None:
    info = PngInfo()
    for number in range(70):
        info.add_text(f"workflow {number}", "x" * 1_000_000, zip=True)  # more than Pillow's limit of all texts
    info.add_text("one", "y" * 3_000_000, zip=True)  # more than its limit of one
    assert (read_image(save(tmp_path / "a.png", flat((9, 8, 7)), pnginfo=info), 8) == [9, 8, 7]).all()
    broken = chunk(b"tEXt", b"a\0b")[:-1] + b"!"
    short = chunk(b"pHYs", b"1"), chunk(b"gAMA", b""), chunk(b"iCCP", b"x"), chunk(b"cHRM", b"2")
    path = png(tmp_path / "b.png", 8, 0, bytes([77] * 8), broken, *short)
    assert (read_image(path, 8) == 77).all()


def test_comments_and_profiles_of_a_jpeg_decide_nothing(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.jpg", flat((200, 100, 50)), quality=95).read_bytes()
    odd = b"".join(
        b"\xff" + marker + struct.pack(">H", len(data) + 2) + data
        for marker, data in (
            (b"\xe2", b"MPF\0II*\0"),
            (b"\xe2", b"ICC_PROFILE\0\x05\x01x"),
            (b"\xed", b"Photoshop 3.0\0" + b"8BIM\x03\xed\0"),
            (b"\xe1", b"Exif\0\0MM"),
            (b"\xe0", b"JFIF\0"),
            (b"\xee", b"Adobe"),
            (b"\xfe", b"\xff\xff"),
        )
    )
    (tmp_path / "b.jpg").write_bytes(whole[:2] + odd + whole[2:])
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg", 8), read_image(tmp_path / "a.jpg", 8))


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (16, struct.pack(">8H", 1000, 1001, 65535, 0, 256, 257, 2570, 5), 1000, [255, 4, 255, 0, 1, 1, 10, 0]),
        (8, bytes([3, 4, 51, 0, 0, 0, 0, 0]), 3, [255, 4, 51, 0, 0, 0, 0, 0]),
        (4, b"\x34\x50\xff\x00", 3, [255, 68, 85, 0, 255, 255, 0, 0]),
        (2, b"\x1b\x1b", 1, [0, 255, 170, 255, 0, 255, 170, 255]),
        (1, b"\x0f", 0, [255] * 8),
    ],
)
def test_a_transparent_grey_counts_at_every_depth(
    tmp_path: Path, bits: int, row: bytes, transparent: int, expected: list[int]
) -> None:
    path = png(tmp_path / "a.png", bits, 0, row, chunk(b"tRNS", struct.pack(">H", transparent)))
    assert read_image(path, 8)[0, :, 0].tolist() == expected


def test_a_transparent_colour_counts_and_one_of_sixteen_bits_is_refused_by_name(tmp_path: Path) -> None:
    rgb = chunk(b"tRNS", struct.pack(">3H", 9, 8, 7))
    read = read_image(png(tmp_path / "a.png", 8, 2, bytes([9, 8, 7, 9, 8, 6] * 4), rgb), 8)
    assert read[0, :2].tolist() == [[255, 255, 255], [9, 8, 6]]
    wide = png(tmp_path / "b.png", 16, 2, struct.pack(">3H", 9, 8, 7) * 8, rgb)
    with pytest.raises(DataError, match=r"^16-bit RGB with a transparent colour"):
        read_image(wide, 8)


def test_grey_of_a_tiff_has_its_own_value_or_is_refused_by_name(tmp_path: Path) -> None:
    ramp = struct.pack("<8H", 0, 257 * 50, 257 * 200, 65535, 0, 0, 0, 0) * 8
    assert read_image(tiff(tmp_path / "a.tif", 16, ramp), 8)[0, :4, 0].tolist() == [0, 50, 200, 255]
    assert read_image(tiff(tmp_path / "b.tif", 16, ramp, white=0), 8)[0, :4, 0].tolist() == [255, 205, 55, 0]
    twelve = tiff(tmp_path / "c.tif", 12, b"\xff\xf8\x00" * 32)
    assert read_image(twelve, 8)[0, :2, 0].tolist() == [255, 128]
    for path, message in (
        (tiff(tmp_path / "d.tif", 32, struct.pack("<64I", *range(192, 256))), "^32-bit grey"),
        (tiff(tmp_path / "e.tif", 32, struct.pack("<64i", *range(64)), sample_format=2), "^signed 32-bit grey"),
        (tiff(tmp_path / "f.tif", 16, ramp, sample_format=2), "^signed 16-bit grey"),
        (tiff(tmp_path / "g.tif", 8, bytes(64), sample_format=2), "^sample format 2"),
        (
            tiff(tmp_path / "h.tif", 8, bytes(64), 3, colours=struct.pack("<768H", *range(256), *[9] * 512)),
            "^a palette",
        ),
    ):
        with pytest.raises(DataError, match=message):
            read_image(path, 8)


@pytest.mark.parametrize(("alpha", "expected"), [(0, [200, 20, 10]), (128, [227, 137, 132]), (255, [200, 20, 10])])
def test_the_alpha_of_a_bmp_counts_unless_it_is_zero_everywhere(
    tmp_path: Path, alpha: int, expected: list[int]
) -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0) + masks
    body = header.ljust(124, b"\0") + bytes([10, 20, 200, alpha]) * 64
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 138) + body)
    np.testing.assert_allclose(read_image(tmp_path / "a.bmp", 8)[3, 3], expected, atol=1)
