"""Reference images: what a caller may give as an identity, read as images of the model's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.config.sampling import LARGEST_SEED
from genaffect_jax.data.photos.reader import PhotoReader
from genaffect_jax.errors import ConfigError, DataError, require, shown
from genaffect_jax.expressions.action_units import neutral

# Reference images of one identity. Fewer are padded to this number, so one program serves all numbers.
MOST_REFERENCES = 4
# Name of an identity that was given as pixels.
ARRAY = "array"

# Paths that a message repeats whole.
_LONGEST = 300

Identity = str | Path | UInt8[np.ndarray, "S S 3"]
_ALLOWED = "must be an image file, seed:N or a uint8 NumPy array, or a list of them"


def as_identities(identity: Identity | Sequence[Identity]) -> tuple[list[Any], list[str]]:
    """The images of one person that a caller gave, one or a list, and the name of each.

    Raises:
        ConfigError: there are none, or more than `MOST_REFERENCES`.
    """
    identities: list[Any] = list(identity) if isinstance(identity, (list, tuple)) else [identity]
    if not 1 <= len(identities) <= MOST_REFERENCES:
        raise ConfigError(f"{len(identities)} images, must be 1 to {MOST_REFERENCES}", field="identity")
    return identities, [ARRAY if isinstance(one, np.ndarray) else str(one) for one in identities]


def read_reference(identity: Identity, size: int, photos: PhotoReader) -> UInt8[np.ndarray, "S S 3"]:
    """The reference image that an identity stands for, uint8 [S, S, 3].

    Args:
        identity: an image file, `seed:N`, or pixels of that size.
        size: side S of the model's images.
        photos: reads image files.

    Raises:
        ConfigError: a malformed `seed:N`, an array of the wrong shape or type, or something else.
        DataError: the file cannot be read as an image.
    """
    if isinstance(identity, np.ndarray):
        if identity.shape != (size, size, 3) or identity.dtype != np.uint8:
            found = f"{identity.dtype} {identity.shape}"
            raise ConfigError(f"must be uint8 ({size}, {size}, 3)", field="identity", found=found)
        return identity
    if not isinstance(identity, (str, Path)) or not str(identity):
        raise ConfigError(_ALLOWED, field="identity", found=shown(identity))
    text = str(identity)
    if text.startswith("seed:"):
        number = text.removeprefix("seed:")
        # Python reads no numbers of more than 4,300 digits.
        known = (
            number.isascii()
            and number.isdecimal()
            and len(number) <= len(str(LARGEST_SEED))
            and int(number) <= LARGEST_SEED
        )
        found = text if len(text) < 50 else f"{text[:40]}... ({len(text)} characters)"
        require(known, "identity", found, f"seed:N needs a whole number N from 0 to {LARGEST_SEED}")
        return render(sample_identity(int(number)), neutral(), size)
    try:
        return photos(Path(identity), size)
    except DataError as e:
        found = text if text.isprintable() and len(text) <= _LONGEST else shown(text)
        raise DataError(str(e), field="identity", found=found) from e
