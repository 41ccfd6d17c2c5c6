"""Image files as RGB arrays, read in the same way for training, cached latents and references."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from genaffect_jax.errors import DataError

# Raster formats with a reliable signature. EPS and WMF are excluded because they start other programs, TGA because it
# has no signature.
FORMATS: tuple[str, ...] = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# 8192 x 8192: larger than the largest phone images in use (50 million), small enough to decode in 1 GiB.
MAX_PIXELS: int = 2**26


def read_image(path: Path | str, image_size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Reads an image file as a square RGB array.

    The EXIF orientation is applied, transparent parts become white, and grey, palette and 16-bit images become 8-bit
    RGB. The centre square is cropped and resized with a Lanczos filter. Of an animation, the first frame is read.
    Colour profiles are not applied. The size is read from the header and checked before decoding.

    Args:
        path: the file.
        image_size: side S of the result, in pixels.

    Returns:
        uint8 `[S, S, 3]`.

    Raises:
        DataError: the file is missing, not an image of a known format, larger than `MAX_PIXELS`, or corrupt. The
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
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as e:
        raise DataError(f"too large: {e} (at most {MAX_PIXELS} pixels are decoded)") from e
    except Image.UnidentifiedImageError as e:
        raise DataError(f"not an image of a known format ({', '.join(FORMATS)})") from e
    except OSError as e:
        raise DataError(f"cannot be opened: {e.strerror or e}") from e
    except Exception as e:  # with a broken header, Pillow's plugins raise errors of any class
        raise DataError(f"broken header: {type(e).__name__}: {e}") from e
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(f"too large: {width} x {height} pixels (at most {MAX_PIXELS} are decoded)")
        try:
            # JPEG decodes faster at 1/2, 1/4 or 1/8 of its size; twice the target keeps the resize sharp.
            if draft is not None:
                image.draft(None, (draft, draft))
            return _to_rgb(ImageOps.exif_transpose(image))
        except DataError:
            raise
        except Exception as e:  # as above: broken data raises OSError, SyntaxError, ValueError, EOFError, ...
            raise DataError(f"corrupt or truncated: {type(e).__name__}: {e}") from e


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would cut off at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(f"grey values {values.min()}..{values.max()}: only 8 and 16 bits a channel are read")
        return Image.fromarray(np.round(values / 257.0).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("floating-point pixels: only 8 and 16 bits a channel are read")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
