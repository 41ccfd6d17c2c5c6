"""Image files without their metadata, so that no tag, text or profile decides whether an image can be read.

Decoders parse much that does not concern pixels, and refuse files in which it is odd. Here the parts of a JPEG, PNG,
TIFF or AVIF file that hold pixels are shown as a file of their own, and the orientation is read by itself. Other
formats are passed on whole: Pillow does not parse their metadata.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, BinaryIO

from genaffect_jax.io.orientation import ORIENTATION, entry_value, exif_orientation, xmp_orientation

_MOST_METADATA = 2**24  # bytes of one block of metadata that are looked at for an orientation
_XAP = b"http://ns.adobe.com/xap/1.0/\0"
# TIFF tags that say where pixels lie and what they mean: TIFF 6.0, its technical notes, and old and new JPEG.
_PIXEL_TAGS: frozenset[int] = frozenset(
    [
        *(*range(254, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326)),
        *(332, 334, 338, 339, 347, *range(512, 522), *range(529, 533), 0xBC01),
    ]
)

# Part of the file as (start, length), or other bytes in its place.
_Piece = tuple[int, int] | bytes


@dataclass(frozen=True)
class PixelFile:
    """A file's pixels and its orientation."""

    stream: BinaryIO
    """The file without metadata."""
    orientation: int | None
    """1 to 8; None if the metadata still stands in `stream`, or there is none."""


def pixels_of(file: BinaryIO) -> PixelFile:
    """The parts of an image file that hold pixels, and its orientation.

    A file whose structure is not understood is passed on whole from there on; the decoder says what is wrong with it.

    Args:
        file: the open file, seekable.

    Raises:
        OSError: it cannot be read.
    """
    file.seek(0)
    head = file.read(16)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        pieces, orientation = _png(file)
    elif head.startswith(b"\xff\xd8\xff"):
        pieces, orientation = _jpeg(file)
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        pieces, orientation = _tiff(file, head)
    elif head[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"):
        pieces, orientation = _avif(file), None
    else:
        file.seek(0)
        return PixelFile(file, None)
    return PixelFile(io.BufferedReader(_Pieces(file, pieces)), orientation)


def _png(file: BinaryIO) -> tuple[list[_Piece], int | None]:
    """Critical chunks and `tRNS`. Orientation: `eXIf`, then ImageMagick's profile in a text, then XMP."""
    pieces: list[_Piece] = [(0, 8)]
    found: dict[str, int | None] = {}
    at, size = 8, _size(file)
    while at + 12 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        end = at + 12 + length
        if end > size or not kind.isalpha():
            break  # cut off, or no chunk
        if not kind[0] & 0x20 or kind == b"tRNS":  # upper case: critical
            pieces.append((at, end - at))
        elif kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt") and length <= _MOST_METADATA:
            data = file.read(length)
            (checksum,) = struct.unpack(">I", file.read(4))
            # As libpng does, a chunk beside the pixels with a wrong checksum is passed over.
            if zlib.crc32(kind + data) == checksum:
                place, orientation = _png_orientation(kind, data)
                found.setdefault(place, orientation)
        at = end
        if kind == b"IEND":
            return pieces, found.get("exif") or found.get("text") or found.get("xmp")
    return [*pieces, (at, size - at)], found.get("exif") or found.get("text") or found.get("xmp")


def _png_orientation(kind: bytes, data: bytes) -> tuple[str, int | None]:
    """Where a chunk's orientation was found, and the orientation; `("", None)` for other texts."""
    if kind == b"eXIf":
        return "exif", exif_orientation(data)
    keyword, _, rest = data.partition(b"\0")
    if keyword == b"XML:com.adobe.xmp" and kind == b"iTXt" and len(rest) > 2:
        text = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
        return "xmp", xmp_orientation(_inflated(text) if rest[0] else text)
    if keyword == b"Raw profile type exif" and kind in (b"tEXt", b"zTXt"):
        text = _inflated(rest[1:]) if kind == b"zTXt" else rest
        try:
            return "text", exif_orientation(bytes.fromhex("".join(text.decode("ascii").split("\n")[3:])))
        except ValueError:
            return "text", None
    return "", None


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_METADATA)
    except zlib.error:
        return b""


def _jpeg(file: BinaryIO) -> tuple[list[_Piece], int | None]:
    """All segments but comments and application data; JFIF and Adobe stay, as they say what the channels are."""
    pieces: list[_Piece] = [(0, 2)]
    exif = xmp = None
    at, size = 2, _size(file)
    while at + 4 <= size:
        file.seek(at)
        mark, marker, length = struct.unpack(">BBH", file.read(4))
        if mark == 0xFF and marker == 0xFF:  # a fill byte
            at += 1
            continue
        # From the first scan on, everything is pixels; what is no segment is left to the decoder.
        if mark != 0xFF or marker in (0x00, 0x01, 0xDA, *range(0xD0, 0xDA)) or at + 2 + length > size or length < 2:
            break
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            data = file.read(length - 2)
            if (marker == 0xE0 and data[:5] == b"JFIF\0" and len(data) >= 14) or (
                marker == 0xEE and data[:5] == b"Adobe" and len(data) >= 12
            ):
                pieces.append((at, 2 + length))
            elif marker == 0xE1 and data[:5] == b"Exif\0":
                exif = exif or exif_orientation(data)
            elif marker == 0xE1 and data.startswith(_XAP):
                xmp = xmp or xmp_orientation(data[len(_XAP) :])
        else:
            pieces.append((at, 2 + length))
        at += 2 + length
    return [*pieces, (at, max(0, size - at))], exif or xmp


def _tiff(file: BinaryIO, head: bytes) -> tuple[list[_Piece], int | None]:
    """The file with a first directory of pixel tags alone, and without further pages. Nothing changes its place."""
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    width, entry, number = (8, 20, "Q") if big else (4, 12, "H")
    offset = "Q" if big else "I"
    size = _size(file)
    whole: list[_Piece] = [(0, size)]
    if len(head) < 16:
        return whole, None
    (start,) = struct.unpack_from(order + offset, head, 8 if big else 4)
    digits = struct.calcsize(order + number)
    if start + digits > size:
        return whole, None
    file.seek(start)
    (count,) = struct.unpack(order + number, file.read(digits))
    length = digits + entry * count + width
    if not 0 < count <= 0xFFFF or start + digits + entry * count > size:
        return whole, None
    entries = file.read(entry * count)
    kept: list[bytes] = []
    orientation = xmp = None
    for place in range(0, len(entries), entry):
        (tag,) = struct.unpack_from(f"{order}H", entries, place)
        if tag in _PIXEL_TAGS:
            kept.append(entries[place : place + entry])
        elif tag == ORIENTATION:
            orientation = orientation or entry_value(entries[place : place + entry], 0, order, width)
        elif tag == 700:
            kind, long = struct.unpack_from(f"{order}H{offset}", entries, place + 2)
            (at,) = struct.unpack_from(order + offset, entries, place + 4 + width)
            if kind in (1, 7) and width < long <= _MOST_METADATA and at + long <= size:
                file.seek(at)
                xmp = xmp_orientation(file.read(long))
    directory = struct.pack(order + number, len(kept)) + b"".join(kept)
    length = min(length, size - start)
    directory = directory.ljust(length, b"\0")[:length]
    return [(0, start), directory, (start + length, size - start - length)], orientation or xmp


def _avif(file: BinaryIO) -> list[_Piece]:
    """The file with its EXIF items renamed. AVIF's own properties say how it is turned (HEIF: EXIF must not)."""
    pieces: list[_Piece] = []
    at, size = 0, _size(file)
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length < 8 or at + length > size:
            break
        if kind in (b"meta", b"moov") and length <= _MOST_METADATA:
            file.seek(at)
            box = file.read(length)
            box = re.sub(rb"(infe\x02...(?:....))Exif", rb"\1skip", box, flags=re.DOTALL)
            pieces.append(re.sub(rb"(infe\x03...(?:......))Exif", rb"\1skip", box, flags=re.DOTALL))
        else:
            pieces.append((at, length))
        at += length
    return [*pieces, (at, size - at)]


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


class _Pieces(io.RawIOBase):
    """Pieces of a file, and bytes between them, as one file."""

    def __init__(self, file: BinaryIO, pieces: list[_Piece]) -> None:
        self._file, self._at = file, 0
        self._pieces: list[_Piece] = []
        self._starts: list[int] = []
        total = 0
        for piece in pieces:
            length = len(piece) if isinstance(piece, bytes) else piece[1]
            last = self._pieces[-1] if self._pieces else None
            if not isinstance(piece, bytes) and isinstance(last, tuple) and sum(last) == piece[0]:
                self._pieces[-1] = (last[0], last[1] + length)
            elif length:
                self._pieces.append(piece)
                self._starts.append(total)
            total += length
        self._total = total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._total}[whence]
        if origin + offset < 0:
            raise OSError(22, "negative place in a file")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._total or not len(view):
            return 0
        number = bisect_right(self._starts, self._at) - 1
        piece, inside = self._pieces[number], self._at - self._starts[number]
        if isinstance(piece, bytes):
            data = piece[inside : inside + len(view)]
        else:
            self._file.seek(piece[0] + inside)
            data = self._file.read(min(len(view), piece[1] - inside))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
