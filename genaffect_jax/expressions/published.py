"""Published action-unit patterns of 18 emotion words, and the rule that turns them into intensities.

The publications list *which* units belong to an emotion; one also gives the share of posers who used a unit. None
gives intensities, which therefore follow this project's rule:

1. Every source that covers the word votes for each unit: 1 if it lists the unit, the share of posers where the
   source gives one (Du et al. "variants"), 0 if it does not list it. A unit's *agreement* is the mean vote.
2. Units below `LEAST_AGREEMENT` are left out. Pressed lips (24) and parted lips (25) exclude each other: the one with
   less agreement is left out; at a tie, the one of the older source.
3. intensity = agreement x `UNIT_SCALE` x the word's strength; unit 4 beside unit 1 is also scaled by
   `KNITTED_BROW_SCALE`. Held postures (eyes closed, gaze, head) are not multiplied by the strength: a weak smile of
   contentment still has closed eyes.

Units without a channel in the expression vector are dropped, and the word's record names them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from genaffect_jax.expressions.action_units import DEGREES, SIDED_UNITS, UNIT_NAMES

CITATIONS: dict[str, str] = {
    "shaver1987": "Shaver, Schwartz, Kirson & O'Connor (1987). Emotion knowledge: further exploration of a prototype "
    "approach. Journal of Personality and Social Psychology 52(6), 1061-1086",
    "emfacs": "EMFACS-style prototypes, after Friesen & Ekman (1983), EMFACS-7: Emotional Facial Action Coding System",
    "du2014": "Du, Tao & Martinez (2014). Compound facial expressions of emotion. PNAS 111(15), E1454-E1462",
    "cordaro2018": "Cordaro, Sun, Keltner, Kamble, Huddar & McNeil (2018). Universals and cultural variations in 22 "
    "emotional expressions across five cultures. Emotion 18(1), 75-93 (international core patterns)",
    "keltner2019": "Keltner, Sauter, Tracy & Cowen (2019). Emotional expression: advances in basic emotion theory. "
    "Journal of Nonverbal Behavior 43, 133-160",
}
SOURCES: tuple[str, ...] = ("emfacs", "du2014", "cordaro2018", "keltner2019")  # oldest first

# word -> source -> (the source's own label, its units). `15` is listed, `17:0.52` is a variant shown by that share
# of posers, `23:?` a variant whose share is not given, `14L` a unit the source puts on one side (which side is ours).
PATTERNS: dict[str, dict[str, tuple[str, str]]] = {
    "desire": {  # Shaver's desire stands among the lust words: Cordaro's "desire (food)" is another thing.
        "cordaro2018": ("desire (sex)", "6 7 12 25"),
        "keltner2019": ("desire", "19 25 26 43"),
    },
    "amusement": {
        "cordaro2018": ("amusement", "6 7 12 16 25 53"),
        "keltner2019": ("amusement", "6 7 12 25 26 53"),
    },
    "joy": {  # No source names joy: the two open-mouthed patterns of happiness stand for it.
        "du2014": ("happy", "12 25 6:0.51"),
        "keltner2019": ("happiness", "6 7 12 25 26"),
    },
    "happiness": {
        "emfacs": ("happiness", "6 12"),
        "cordaro2018": ("happiness", "6 7 12 16 25"),
        "keltner2019": ("happiness", "6 7 12 25 26"),
    },
    "contentment": {
        "cordaro2018": ("contentment", "12 43"),
        "keltner2019": ("contentment", "12 43"),
    },
    "pride": {
        "cordaro2018": ("pride", "7 12 53"),
        "keltner2019": ("pride", "53 64"),
    },
    "triumph": {"cordaro2018": ("triumph", "6 7 12 25")},
    "relief": {"cordaro2018": ("relief", "12 18 25 43")},
    "surprise": {
        "emfacs": ("surprise", "1 2 5 26"),
        "du2014": ("surprised", "1 2 25 26 5:0.66"),
        "cordaro2018": ("surprise", "1 2 5 25"),
        "keltner2019": ("surprise", "1 2 5 25 26"),
    },
    "anger": {
        "emfacs": ("anger", "4 5 7 23"),
        "du2014": ("angry", "4 7 24 10:0.26 17:0.52 23:?"),
        "cordaro2018": ("anger", "4 7"),
        "keltner2019": ("anger", "4 5 17 23 24"),
    },
    "hate": {"du2014": ("hatred", "4 10 7:? 9:0.27 17:0.63 24:?")},
    "disgust": {
        "emfacs": ("disgust", "9 15 16"),
        "du2014": ("disgusted", "9 10 17 4:0.31 24:0.26"),
        "cordaro2018": ("disgust", "4 6 7 9 10 25"),
        "keltner2019": ("disgust", "7 9 19 25 26"),
    },
    "contempt": {
        "emfacs": ("contempt", "12L 14L"),
        "cordaro2018": ("contempt", "4 14 25"),
    },
    "sadness": {
        "emfacs": ("sadness", "1 4 15"),
        "du2014": ("sad", "4 15 1:0.6 6:0.5 11:? 17:0.67"),
        "cordaro2018": ("sadness", "4 43 54"),
        "keltner2019": ("sadness", "1 4 6 15 17"),
    },
    "shame": {
        "cordaro2018": ("shame", "4 17 54"),
        "keltner2019": ("shame", "54 64"),
    },
    "embarrassment": {
        "cordaro2018": ("embarrassment", "6 7 12 25 54"),
        "keltner2019": ("embarrassment", "7 12 15 52 54 64"),
    },
    "sympathy": {
        "cordaro2018": ("sympathy", "25 57"),
        "keltner2019": ("sympathy", "1 17 24 57"),
    },
    "fear": {
        "emfacs": ("fear", "1 2 4 5 7 20 26"),
        "du2014": ("fearful", "1 4 20 25 2:0.57 5:0.63 26:0.33"),
        "cordaro2018": ("fear", "1 2 5 7 25"),
        "keltner2019": ("fear", "1 2 4 5 7 20 25"),
    },
}

UNKNOWN_SHARE = 0.2  # the smallest share of posers that Du et al. still report as a variant
LEAST_AGREEMENT = 0.3
EXCLUSIVE_UNITS = (24, 25)

# FACS head and eye positions that the vector holds as signed channels: (channel, value at full agreement).
POSTURE_UNITS: dict[int, tuple[str, float]] = {
    51: ("head_yaw", 0.8),
    52: ("head_yaw", -0.8),
    53: ("head_pitch", 0.8),
    54: ("head_pitch", -0.8),
    55: ("head_roll", 0.8),
    56: ("head_roll", -0.8),
    61: ("gaze_yaw", 1.0),
    62: ("gaze_yaw", -1.0),
    63: ("gaze_pitch", 1.0),
    64: ("gaze_pitch", -1.0),
}
# Intensity at full agreement of units that look wrong at 1: 7 almost shuts the eyes, 19 sticks out the tongue.
UNIT_SCALE: dict[int, float] = {7: 0.6, 16: 0.6, 18: 0.7, 19: 0.3}
# Beside the inner brow raiser (1), the brow lowerer (4) knits the brows; in full it would press them down again.
KNITTED_BROW_SCALE = 0.55
HELD_CHANNELS: frozenset[str] = frozenset(DEGREES) | {"AU43L", "AU43R"}


class Pattern(NamedTuple):
    """The combined pattern of one word; channel values do not include the word's strength."""

    channels: dict[str, float]  # channel name to value
    agreement: dict[str, float]  # every unit any source lists ("12", or "12L" for one side) to its mean vote
    left_out: tuple[int, ...]  # units with too little agreement, or excluded by another unit
    dropped: tuple[int, ...]  # units for which the expression vector has no channel
    source: str


def _votes(units: str) -> dict[int, tuple[float, str]]:
    """`"4 17:0.52 23:? 14L"` to unit -> (vote, side); side is `"L"`, `"R"` or `""` for both."""
    votes = {}
    for item in units.split():
        match = re.fullmatch(r"(\d+)([LR]?)(?::(\?|[\d.]+))?", item)
        if match is None:
            raise ValueError(f"published pattern '{units}': cannot read '{item}'")
        unit, side, share = match.groups()
        votes[int(unit)] = (UNKNOWN_SHARE if share == "?" else float(share or 1.0), side)
    return votes


def combine(word: str) -> Pattern:
    """The sources' patterns for `word` combined by the rule of this module.

    Raises:
        KeyError: no source covers the word.
    """
    by_source = {source: _votes(PATTERNS[word][source][1]) for source in SOURCES if source in PATTERNS[word]}
    units = sorted({unit for votes in by_source.values() for unit in votes})
    agreement = {u: sum(v.get(u, (0.0, ""))[0] for v in by_source.values()) / len(by_source) for u in units}
    side = {u: max(v[u][1] for v in by_source.values() if u in v) for u in units}

    dropped = tuple(u for u in units if u not in UNIT_NAMES and u not in POSTURE_UNITS)
    left_out = {u for u in units if agreement[u] < LEAST_AGREEMENT} - set(dropped)
    rivals = [u for u in EXCLUSIVE_UNITS if u in agreement and u not in left_out]
    if len(rivals) > 1:
        newest = {u: max(i for i, s in enumerate(SOURCES) if u in by_source.get(s, {})) for u in rivals}
        left_out.add(min(rivals, key=lambda u: (agreement[u], newest[u])))

    channels: dict[str, float] = {}
    for unit in units:
        if unit in left_out or unit in dropped:
            continue
        if unit in POSTURE_UNITS:
            name, value = POSTURE_UNITS[unit]
            channels[name] = channels.get(name, 0.0) + agreement[unit] * value
            continue
        sides = (side[unit] or "LR") if unit in SIDED_UNITS else ("",)
        for s in sides:
            channels[f"AU{unit}{s}"] = agreement[unit] * UNIT_SCALE.get(unit, 1.0)
    if "AU1L" in channels and "AU4L" in channels:
        channels |= {c: channels[c] * KNITTED_BROW_SCALE for c in ("AU4L", "AU4R")}
    source = "; ".join(f"{s} ({PATTERNS[word][s][0]})" for s in by_source)
    by_name = {f"{u}{side[u]}": round(a, 3) for u, a in agreement.items()}
    return Pattern(channels, by_name, tuple(sorted(left_out)), dropped, source)
