"""Contact sheets and image files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from genaffect_jax.io.atomic import new_file

_PAPER = (250, 249, 247)
_INK = (52, 49, 46)


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "S S 3"]], labels: Sequence[str], *, columns: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays images of equal size out in rows, each with its label underneath.

    Args:
        images: uint8 RGB, all of one size.
        labels: one per image; a label that is too long for its cell is cut with an ellipsis.
        columns: images per row. Default: near-square, a little wider where that leaves fewer empty places.

    Raises:
        ValueError: no images, unequal sizes, or not one label per image.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"contact sheet: {len(images)} images and {len(labels)} labels")
    sizes = {p.shape for p in images}
    if len(sizes) != 1:
        raise ValueError(f"contact sheet: images of different sizes {sorted(sizes)}")
    side = images[0].shape[0]
    columns = columns or _columns(len(images))
    rows = math.ceil(len(images) / columns)
    gap, text = max(side // 16, 4), max(side // 9, 11)
    cell_width, cell_height = side + gap, side + text + 2 * gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(text)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = gap + i % columns * cell_width, gap + i // columns * cell_height
        sheet.paste(Image.fromarray(np.asarray(image)), (x, y))
        draw.text((x + side / 2, y + side + gap / 2 + text), _fit(label, font, side), _INK, font, anchor="ms")
    return np.asarray(sheet)


def _columns(images: int) -> int:
    square = math.ceil(math.sqrt(images))
    return min(range(square, square + 4), key=lambda columns: (-images % columns, columns))


def _fit(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…"


def write_png(
    image: UInt8[np.ndarray, "H W 3"], path: Path, text: Mapping[str, str] | None = None, *, fast: bool = False
) -> None:
    """Writes a PNG atomically, with `text` as its text chunks; `fast` spends a tenth of the time on an eighth more."""
    with new_file(path) as temporary:
        temporary.write_bytes(png_bytes(image, text, fast=fast))


def png_bytes(image: UInt8[np.ndarray, "H W 3"], text: Mapping[str, str] | None = None, *, fast: bool = False) -> bytes:
    """The content of the file that `write_png` writes."""
    information = PngInfo()
    for key, value in (text or {}).items():
        information.add_itxt(key, value)
    effort: dict[str, int] = {"compress_level": 3} if fast else {"optimize": True}
    content = BytesIO()
    Image.fromarray(np.asarray(image)).save(content, format="PNG", pnginfo=information, **effort)
    return content.getvalue()
