"""Image files with random EXIF tags: each must be read, upright, whatever stands beside the orientation.

    python benchmarks/fuzz_image_metadata.py [--count 20000] [--seed 0]

Every trial puts one directory of odd tags (types 0 to 20, counts and values that fit, that point outside the file, or
that mean nothing) with a good orientation into a JPEG, PNG, WebP, TIFF or AVIF, and compares the pixels. Status 1 and
one line for each file that is refused or turned wrongly.
"""

from __future__ import annotations

import argparse
import collections
import io
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from genaffect_jax.errors import DataError
from genaffect_jax.io.images import read_photo
from genaffect_jax.io.orientation import upright

SIDE = 16
# Tags that TIFF itself reads pixels by are no metadata. Of the others: all that Pillow knows, and some unknown ones.
TAGS = sorted({int(tag) for tag in ExifTags.TAGS if not 254 <= tag <= 347 and not 512 <= tag <= 532} | {269, 270, 271})
TAGS = [tag for tag in [*TAGS, 282, 283, 296, 305, 306, 315, 1, 60000, 65535] if tag not in (274, 0xBC01, 700)]
_SLOT = 400  # bytes of EXIF in the AVIF, where it cannot grow


def picture() -> Image.Image:
    """A square whose eight turns all differ."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 8:], pixels[8:, :8] = 255, (255, 0, 0), (0, 0, 255)
    return Image.fromarray(pixels)


def directory(rng: np.random.Generator, order: str, orientation: int, pixel_tags: bytes, start: int) -> bytes:
    """A directory of `pixel_tags`, an orientation and odd entries, in any order, that lies at `start`."""
    entries = [pixel_tags[i : i + 12] for i in range(0, len(pixel_tags), 12)]
    entries.append(struct.pack(f"{order}HHIHxx", 274, 3, 1, orientation))
    for _ in range(int(rng.integers(1, 9))):
        value = int(rng.choice([0, 1, 6, 8, start, 2**31, 2**32 - 1, int(rng.integers(2**32))]))
        count = int(rng.choice([0, 1, 2, 3, 5, 100, 2**16, 2**32 - 1]))
        entries.append(struct.pack(f"{order}HHII", int(rng.choice(TAGS)), int(rng.integers(0, 21)), count, value))
    if rng.random() < 0.5:
        entries.sort(key=lambda entry: struct.unpack_from(f"{order}H", entry)[0])
    else:
        entries = [entries[i] for i in rng.permutation(len(entries))]
    following = int(rng.choice([0, 8, start, 2**32 - 1]))  # the next directory: none, a loop, outside
    return struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", following)


def exif(rng: np.random.Generator, orientation: int) -> bytes:
    """An EXIF block without `Exif\\0\\0`."""
    order = "<" if rng.random() < 0.5 else ">"
    return struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8) + directory(
        rng, order, orientation, b"", 8
    )


def jpeg(block: bytes, whole: bytes) -> bytes:
    """A JPEG with the block as its first segment."""
    data = b"Exif\0\0" + block
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + whole[2:]


def png(block: bytes, whole: bytes) -> bytes:
    """A PNG with the block behind its header."""
    chunk = b"eXIf" + block
    return whole[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


def webp(block: bytes, whole: bytes) -> bytes:
    """A lossless WebP with the block at its end."""
    extended = b"VP8X" + struct.pack("<IB3x", 10, 8) + 2 * (SIDE - 1).to_bytes(3, "little")
    last = b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    body = b"WEBP" + extended + whole[12:] + last
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(rng: np.random.Generator, orientation: int, pixels: bytes) -> bytes:
    """A TIFF whose own directory holds the odd entries."""
    order = "<" if rng.random() < 0.5 else ">"
    words = ((256, SIDE), (257, SIDE), (259, 1), (262, 2), (273, 8), (277, 3), (278, SIDE), (279, len(pixels)))
    tags = b"".join(struct.pack(f"{order}HHIHxx", tag, 3, 1, value) for tag, value in words)
    start = 8 + len(pixels) + 6
    tags += struct.pack(f"{order}HHII", 258, 3, 3, start - 6)
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    return head + pixels + struct.pack(f"{order}3H", 8, 8, 8) + directory(rng, order, orientation, tags, start)


def encoded(name: str, **options: object) -> bytes:
    """The picture in a format of Pillow."""
    stream = io.BytesIO()
    picture().save(stream, name, **options)
    return stream.getvalue()


def run(count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Reads `count` files; returns how many of each format, and one line for each fault."""
    rng = np.random.default_rng(seed)
    shown = picture()
    slot = Image.Exif()
    slot[270] = "x" * (_SLOT - 64)
    avif_block = slot.tobytes()
    avif = encoded("AVIF", exif=avif_block, quality=100, subsampling="4:4:4")
    jpeg_file, png_file = encoded("JPEG", quality=98, subsampling=0), encoded("PNG")
    webp_file = encoded("WEBP", lossless=True)
    makers: dict[str, Callable[[int], bytes]] = {
        "jpeg": lambda o: jpeg(exif(rng, o), jpeg_file),
        "png": lambda o: png(exif(rng, o), png_file),
        "webp": lambda o: webp(exif(rng, o), webp_file),
        "tiff": lambda o: tiff(rng, o, shown.tobytes()),
        "avif": lambda o: avif.replace(avif_block[6:], exif(rng, o).ljust(len(avif_block) - 6, b"\0")),
    }
    read: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        for trial in range(count):
            name = list(makers)[trial % len(makers)]
            orientation = int(rng.integers(1, 9))
            path.write_bytes(makers[name](orientation))
            # An AVIF is turned by its own properties only; this one has none.
            wanted = np.asarray(upright(shown, 1 if name == "avif" else orientation)).astype(int)
            try:
                error = np.abs(read_photo(path).astype(int) - wanted)
                if error.mean() > 8:
                    faults.append(f"trial {trial}, {name}, orientation {orientation}: turned wrongly")
            except DataError as e:
                faults.append(f"trial {trial}, {name}, orientation {orientation}: {e}")
            read[name] += 1
    return read, faults


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="files to read")
    parser.add_argument("--seed", type=int, default=0, help="of the random tags")
    arguments = parser.parse_args()
    read, faults = run(arguments.count, arguments.seed)
    print("\n".join(faults[:50]))
    print(f"{sum(read.values())} files ({dict(read)}): {len(faults)} refused or turned wrongly")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
