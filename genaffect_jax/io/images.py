"""Image files as RGB arrays, read in the same way for training, cached latents and references."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from genaffect_jax.errors import DataError
from genaffect_jax.io.image_containers import PixelFile, pixels_of
from genaffect_jax.io.orientation import exif_orientation, upright, xmp_orientation
from genaffect_jax.io.pixel_formats import to_rgb

# Raster formats with a reliable signature. EPS and WMF are excluded because they start other programs, TGA because it
# has no signature.
FORMATS: tuple[str, ...] = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# 8192 x 8192: larger than the largest phone images in use (50 million), small enough to decode in 1 GiB.
MAX_PIXELS: int = 2**26
# Twice that many pixels of four 16-bit channels; some decoders read a file whole.
MAX_BYTES: int = 2**30


def read_image(path: Path | str, image_size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Reads an image file as a square RGB array.

    The EXIF orientation is applied and no other metadata is looked at (`io.image_containers`). Transparent parts become
    white, and grey, palette and 16-bit images become 8-bit RGB (`io.pixel_formats`). The centre square is cropped and
    resized with a Lanczos filter. Of an animation, the first frame is read. Colour profiles are not applied. The size
    is read from the header and checked before decoding.

    Args:
        path: the file.
        image_size: side S of the result, in pixels.

    Returns:
        uint8 `[S, S, 3]`.

    Raises:
        DataError: the file is missing, not an image of a known format, larger than `MAX_PIXELS` or `MAX_BYTES`, of
            a depth or colour that has no right value in 8-bit RGB, or corrupt. The
            message does not name the file; callers name it as the user wrote it.
    """
    square = ImageOps.fit(_decode(path, 2 * image_size), (image_size, image_size), Image.Resampling.LANCZOS)
    return np.array(square, np.uint8)


def read_photo(path: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file as an RGB array of its own size; otherwise as `read_image`, with its errors."""
    return np.array(_decode(path, None), np.uint8)


def _decode(path: Path | str, draft: int | None) -> Image.Image:
    """The whole image as 8-bit RGB; with `draft`, a JPEG may be decoded smaller, at least this many pixels wide."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block
        raise DataError("not a file")
    try:
        with open(path, "rb") as file:
            if (length := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise DataError(f"too large: {length} bytes (at most {MAX_BYTES} are read)")
            pixels = pixels_of(file)
            return _decode_pixels(pixels, draft)
    except DataError:
        raise
    except OSError as e:
        raise DataError(f"cannot be opened: {e.strerror or e}") from e
    except ValueError as e:
        raise DataError(f"cannot be opened: {e}") from e  # a zero byte in the path


def _decode_pixels(pixels: PixelFile, draft: int | None) -> Image.Image:
    try:
        image = Image.open(pixels.stream, formats=FORMATS)
    except Image.DecompressionBombError as e:
        raise DataError(f"too large: {e} (at most {MAX_PIXELS} pixels are decoded)") from e
    except Image.UnidentifiedImageError as e:
        raise DataError(f"not an image of a known format ({', '.join(FORMATS)})") from e
    except Exception as e:  # with a broken header, Pillow's plugins raise errors of any class
        raise DataError(f"broken header: {type(e).__name__}: {e}") from e
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(f"too large: {width} x {height} pixels (at most {MAX_PIXELS} are decoded)")
        orientation = pixels.orientation or _orientation(image) or 1
        try:
            # JPEG decodes faster at 1/2, 1/4 or 1/8 of its size; twice the target keeps the resize sharp.
            if draft is not None:
                image.draft(None, (draft, draft))
            return upright(to_rgb(image), orientation)
        except DataError:
            raise
        except Exception as e:  # as above: broken data raises OSError, SyntaxError, ValueError, EOFError, ...
            raise DataError(f"corrupt or truncated: {type(e).__name__}: {e}") from e


def _orientation(image: Image.Image) -> int | None:
    """The orientation in metadata that Pillow passes on unread, in WebP and AVIF."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    return (exif_orientation(exif) if isinstance(exif, bytes) else None) or (
        xmp_orientation(xmp) if isinstance(xmp, bytes) else None
    )
