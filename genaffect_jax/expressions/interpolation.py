"""Morphs: expressions between two given ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genaffect_jax.errors import ConfigError, require
from genaffect_jax.expressions.grammar import Expression


def morph_expressions(first: Sequence[Expression], last: Sequence[Expression], frames: int) -> tuple[Expression, ...]:
    """`frames` expressions whose vectors are evenly spaced on the line between two.

    Args:
        first, last: one expression each, as parsed from a text.
        frames: at least 2, the two ends included.

    Raises:
        ConfigError: a text gave more than one expression, or fewer than two frames.
    """
    for expressions in (first, last):
        if len(expressions) != 1:
            names = ", ".join(e.name for e in expressions)
            raise ConfigError(f"{len(expressions)} expressions where one is needed: {names}", field="morph")
    require(frames >= 2, "frames", frames, "must be at least 2")
    (start,), (end,) = first, last
    between = []
    for share in np.linspace(0.0, 1.0, frames)[1:-1]:
        vector = ((1.0 - share) * start.vector + share * end.vector).astype(np.float32)
        between.append(Expression(f"{start.name} to {end.name} {share:.0%}", vector, "blend", None))
    return (start, *between, end)
