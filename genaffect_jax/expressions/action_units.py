"""The expression vector: FACS action-unit intensities, gaze and head angles.

One vector of `WIDTH` float32 numbers describes a facial expression. Action units (AUs, Ekman & Friesen 1978) are
intensities in [0, 1]. Units that FACS scores on each side of the face have two channels; `L` is the *person's* left
(the right half of a frontal image). Gaze and head channels are signed, in [-1, 1]; `DEGREES` scales them to degrees.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Number -> FACS name. FACS scores sided units separately for the two sides of the face.
SIDED_UNITS: dict[int, str] = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    14: "dimpler",
    15: "lip corner depressor",
    20: "lip stretcher",
    43: "eyes closed",
}
MEDIAN_UNITS: dict[int, str] = {
    16: "lower lip depressor",
    17: "chin raiser",
    18: "lip pucker",
    19: "tongue show",
    23: "lip tightener",
    24: "lip pressor",
    25: "lips part",
    26: "jaw drop",
    27: "mouth stretch",
}
# Signed channels. Positive: the person's left (yaw, and the ear towards the left shoulder for roll), or up.
DEGREES: dict[str, float] = {
    "gaze_yaw": 30.0,
    "gaze_pitch": 25.0,
    "head_yaw": 30.0,
    "head_pitch": 20.0,
    "head_roll": 20.0,
}

UNIT_NAMES: dict[int, str] = dict(sorted({**SIDED_UNITS, **MEDIAN_UNITS}.items()))


def unit_channels(unit: int) -> tuple[str, ...]:
    """The channel names of one action unit: `("AU12L", "AU12R")` for 12, `("AU26",)` for 26.

    Raises:
        KeyError: the vector has no channel for this unit.
    """
    if unit in SIDED_UNITS:
        return (f"AU{unit}L", f"AU{unit}R")
    if unit in MEDIAN_UNITS:
        return (f"AU{unit}",)
    raise KeyError(f"AU{unit}: not an action unit of the expression vector (it has {sorted(UNIT_NAMES)})")


CHANNELS: tuple[str, ...] = tuple(c for unit in UNIT_NAMES for c in unit_channels(unit)) + tuple(DEGREES)
INDEX: dict[str, int] = {name: i for i, name in enumerate(CHANNELS)}
WIDTH: int = len(CHANNELS)
LOWEST: np.ndarray = np.array([-1.0 if c in DEGREES else 0.0 for c in CHANNELS], np.float32)


def neutral() -> np.ndarray:
    """The resting face looking straight ahead: a float32 vector of zeros, shape `(WIDTH,)`."""
    return np.zeros(WIDTH, np.float32)


def expression_vector(channels: Mapping[str, float]) -> np.ndarray:
    """A vector from channel names; `"AU12"` sets both sides of a sided unit.

    Args:
        channels: name (`"AU12"`, `"AU12L"`, `"head_yaw"`) to value.

    Returns:
        float32 `(WIDTH,)`.

    Raises:
        KeyError: a name is not a channel.
        ValueError: a value is outside [0, 1] (action units) or [-1, 1] (gaze, head), or not finite.
    """
    vector = neutral()
    for name, value in channels.items():
        sides = (f"{name}L", f"{name}R")
        for channel in (name,) if name in INDEX else sides:
            if channel not in INDEX:
                raise KeyError(f"{name}: no such expression channel (channels: {', '.join(CHANNELS)})")
            i = INDEX[channel]
            if not LOWEST[i] <= value <= 1.0:
                raise ValueError(f"{name}={value}: must lie between {LOWEST[i]:g} and 1")
            vector[i] = value
    return vector


def validate(vector: np.ndarray) -> np.ndarray:
    """Returns `vector` as float32 `(WIDTH,)`; raises ValueError if its shape or a value is not allowed."""
    vector = np.asarray(vector, np.float32)
    if vector.shape != (WIDTH,):
        raise ValueError(f"expression vector: shape {vector.shape}, expected ({WIDTH},)")
    bad = [f"{c}={v:g}" for c, v, low in zip(CHANNELS, vector, LOWEST, strict=True) if not low <= v <= 1.0]
    if bad:
        raise ValueError(f"expression vector: out of range: {', '.join(bad)} (AUs in [0, 1], gaze and head in [-1, 1])")
    return vector
