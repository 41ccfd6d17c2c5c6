"""Decoded pixels of every depth and colour as 8-bit RGB; what has no right value there is refused by name."""

from __future__ import annotations

import numpy as np
from PIL import Image

from genaffect_jax.errors import DataError

_ONLY = "only 8 and 16 bits a channel are read"
_PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _COLOURS = 262, 338, 339, 320  # TIFF tags
# Pillow's names for the numbers in a file, before they become a mode.
_DEPTHS: dict[str, str] = {
    "I;16S": "signed 16-bit grey",
    "I;16BS": "signed 16-bit grey",
    "I;32N": "32-bit grey",
    "I;32S": "signed 32-bit grey",
    "I;32BS": "signed 32-bit grey",
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image as 8-bit RGB, transparent parts on white.

    Args:
        image: as opened, before its pixels are decoded: how they lie in the file is forgotten afterwards.

    Returns:
        An image of mode RGB, turned as it lies in the file.

    Raises:
        DataError: pixels of a depth or colour whose values in RGB are not known.
        Exception: whatever Pillow raises for broken data.
    """
    raw = _raw_mode(image)
    _refuse(image, raw)
    if image.mode.startswith("I"):
        return _wide_grey(image, raw)
    _scale_transparency(image, raw)
    image.load()  # from here on the mode is that of the pixels
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if not _declares_alpha(image) and rgba.getchannel("A").getextrema() == (0, 0):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of the numbers in the file, such as `L;4`; empty for formats without one."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    arguments = tile[0][3]
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _refuse(image: Image.Image, raw: str) -> None:
    if image.mode == "F":
        raise DataError(f"floating-point pixels: {_ONLY}")
    # A PPM's grey of more than 8 bits has mode I too; Pillow scales it to 16 bits.
    if raw in _DEPTHS or (image.mode == "I" and image.format != "PPM"):
        raise DataError(f"{_DEPTHS.get(raw, '32-bit grey')}: {_ONLY}")
    if image.format == "PNG" and raw == "RGB;16B" and "transparency" in image.info:
        raise DataError(
            "16-bit RGB with a transparent colour: Pillow reads 8 of the bits; save it with an alpha channel"
        )
    tags = getattr(image, "tag_v2", {})
    # 1: unsigned, 4: not said (then unsigned as well).
    if signed := set(tags.get(_SAMPLE_FORMAT, ())) - {1, 4}:
        raise DataError(f"sample format {signed.pop()} (signed or floating-point): {_ONLY}, unsigned")
    if image.mode in ("P", "PA") and max(tags.get(_COLOURS, (256,))) < 256:
        raise DataError("a palette of 16-bit colours that are all below 256: nearly black, or written with 8 bits")


def _wide_grey(image: Image.Image, raw: str) -> Image.Image:
    """16-bit (or 12-bit) grey; Pillow's own conversion would cut off at 255."""
    transparent = image.info.get("transparency")
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # white is zero; Pillow inverts 8 bits only
    values = np.asarray(image).astype(np.int64)
    highest = 4095 if raw.startswith("I;12") else 65535
    if values.min() < 0 or values.max() > highest:
        raise DataError(f"grey values {values.min()}..{values.max()}: {_ONLY}")
    grey = np.round((highest - values if inverted else values) * (255 / highest)).astype(np.uint8)
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _scale_transparency(image: Image.Image, raw: str) -> None:
    """A PNG's transparent grey or colour in 8 bits, as Pillow scales the pixels but not this value."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None:
        return
    if image.mode == "L" and isinstance(value, int):
        bits = {"L;2": 2, "L;4": 4}.get(raw, 8)
        image.info["transparency"] = (value & (2**bits - 1)) * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(value, tuple):
        image.info["transparency"] = tuple(v & 255 for v in value)


def _declares_alpha(image: Image.Image) -> bool:
    """Whether the file says that its fourth channel is alpha. In a BMP it often is padding of zeros."""
    if image.format == "BMP":
        return False
    return image.format != "TIFF" or bool(getattr(image, "tag_v2", {}).get(_EXTRA_SAMPLES))
