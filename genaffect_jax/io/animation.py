"""GIF and WebP animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genaffect_jax.io.atomic import new_file

FRAME_SECONDS = 0.08
# The two ends are shown longer.
END_SECONDS = 0.5


def write_animation(images: Sequence[UInt8[np.ndarray, "S S 3"]], path: Path, note: str) -> None:
    """Writes images as an endless animation, forwards and backwards, atomically.

    Args:
        images: the frames, at least two.
        path: a file that ends in .gif or .webp.
        note: comment in the file.
    """
    frames = [Image.fromarray(image) for image in images]
    seconds = [END_SECONDS, *[FRAME_SECONDS] * (len(frames) - 2), END_SECONDS]
    frames, seconds = frames + frames[-2:0:-1], seconds + seconds[-2:0:-1]
    kind = path.suffix.removeprefix(".").lower()
    extra: dict[str, Any] = {"comment": note.encode()} if kind == "gif" else {"xmp": note.encode(), "lossless": True}
    with new_file(path) as temporary:
        frames[0].save(
            temporary,
            format=kind.upper(),
            save_all=True,
            append_images=frames[1:],
            loop=0,
            duration=[round(1000 * s) for s in seconds],
            **extra,
        )
