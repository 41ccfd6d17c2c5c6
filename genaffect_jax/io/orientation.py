"""The orientation of an image file, read from EXIF and XMP without any other tag."""

from __future__ import annotations

import re
import struct

from PIL import Image

ORIENTATION = 274
# The move that shows an image of each orientation upright (EXIF 3.0, tag 274); 1 needs none.
_MOVES: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Numeric TIFF types as struct formats; cameras write SHORT, and software also others. 5 and 10 are fractions.
_TYPES: dict[int, str] = {
    1: "B",
    3: "H",
    4: "I",
    5: "II",
    6: "b",
    8: "h",
    9: "i",
    10: "ii",
    11: "f",
    12: "d",
    16: "Q",
    17: "q",
}
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned and mirrored as its orientation says, 1 to 8."""
    move = _MOVES.get(orientation)
    return image if move is None else image.transpose(move)


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in an EXIF block (a TIFF header and its first directory).

    No other tag is looked at, so that a broken one does not matter.

    Args:
        exif: the block, with or without `Exif\\0\\0` in front.

    Returns:
        1 to 8, or None if there is no directory, no such tag, or a value that means nothing.
    """
    data = exif[6:] if exif[:5] == b"Exif\0" else exif
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 10:
        return None
    magic, start = struct.unpack_from(f"{order}HI", data, 2)
    if magic != 42 or start + 2 > len(data):
        return None
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        if struct.unpack_from(f"{order}H", data, place)[0] == ORIENTATION:
            return entry_value(data, place, order, 4)
    return None


def entry_value(data: bytes, place: int, order: str, width: int) -> int | None:
    """The orientation in a directory's entry.

    Args:
        data: the block; values too long for the entry are looked up in it.
        place: where the entry begins.
        order: byte order, `<` or `>`.
        width: bytes of a count and of an offset: 4, or 8 in BigTIFF.

    Returns:
        1 to 8, or None.
    """
    kind, count = struct.unpack_from(f"{order}H{'I' if width == 4 else 'Q'}", data, place + 2)
    if kind not in _TYPES:
        return None
    value_format = order + _TYPES[kind]
    at = place + 4 + width
    # A count of 0 is a known slip of writers; the value then stands in the entry as usual.
    if struct.calcsize(value_format) * max(count, 1) > width:
        (at,) = struct.unpack_from(f"{order}{'I' if width == 4 else 'Q'}", data, at)
    if at + struct.calcsize(value_format) > len(data):
        return None
    values = struct.unpack_from(value_format, data, at)
    value = values[0] if len(values) == 1 else values[0] / values[1] if values[1] else 0
    return int(value) if value in range(1, 9) else None


def xmp_orientation(xmp: bytes) -> int | None:
    """The orientation in an XMP packet, 1 to 8, or None."""
    match = _XMP.search(xmp)
    return int(match[1]) if match else None
