"""The numbers that, with the seed, decide the noise of the images of a set."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from genaffect_jax.expressions.grammar import Expression


def noise_ids_of(expressions: Sequence[Expression]) -> Int32[np.ndarray, " E"]:
    """The numbers that, with the seed, decide the noise of images; each from the expression vector alone.

    An image therefore does not depend on the rest of its set. Equal expressions in one set are told apart by how often
    they occurred before.
    """
    seen: dict[bytes, int] = {}
    numbers = []
    for expression in expressions:
        key = np.round(expression.vector, 4).astype("<f4").tobytes()
        seen[key] = seen.get(key, -1) + 1
        numbers.append(zlib.crc32(key + bytes([seen[key] % 256])) & 0x7FFFFFFF)
    return np.array(numbers, np.int32)
