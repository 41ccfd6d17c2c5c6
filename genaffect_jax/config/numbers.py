"""Numbers of a configuration that no program can use: not finite, or larger than any machine's arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from genaffect_jax.errors import require

# Counters are 32-bit integers in programs.
LARGEST_NUMBER = 2**31 - 1
# Channels, tokens, layers, heads, images of a set: beyond it a first array alone would not fit into any device.
LARGEST_SIZE = 2**16


def require_usable_numbers(
    config: object, prefix: str = "", largest: int = LARGEST_NUMBER, limits: Mapping[str, int] | None = None
) -> None:
    """Refuses numbers that are not finite and whole numbers that are too large, in all fields of a dataclass.

    Args:
        config: the configuration; configurations in it check themselves.
        prefix: of the fields' names in messages, such as `train.`.
        largest: largest absolute value of whole numbers.
        limits: other largest values, by field.

    Raises:
        ConfigError: names the field, its value and what is allowed.
    """
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        given = getattr(config, field.name, None)  # derived fields come later
        most = (limits or {}).get(field.name, largest)
        for number in given if isinstance(given, tuple) else (given,):
            name = f"{prefix}{field.name}"
            if isinstance(number, float):
                require(math.isfinite(number), name, number, "must be finite")
            elif isinstance(number, int):
                require(abs(number) <= most, name, number, f"must be at most {most}")
