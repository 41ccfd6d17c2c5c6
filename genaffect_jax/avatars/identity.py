"""Who an avatar is: the parameters of one person, and how people are sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genaffect_jax.avatars import palette

HAIR_STYLES: tuple[str, ...] = (
    "bald",
    "receding",
    "buzz",
    "short",
    "side_part",
    "quiff",
    "pixie",
    "fringe_bob",
    "bob",
    "long_straight",
    "long_wavy",
    "curly",
    "afro",
    "top_bun",
    "space_buns",
    "ponytail",
    "headscarf",
    "beanie",
)
FACIAL_HAIR: tuple[str, ...] = ("none", "stubble", "moustache", "goatee", "beard")
GLASSES: tuple[str, ...] = ("none", "round", "square", "cat_eye", "half_rim", "aviator")
OUTFITS: tuple[str, ...] = ("crew", "v_neck", "shirt", "hoodie", "turtleneck", "blazer", "stripes")
EARRINGS: tuple[str, ...] = ("none", "stud", "hoop")
BACKGROUNDS: tuple[str, ...] = ("plain", "disc", "dots", "waves", "rays")


@dataclass(frozen=True)
class Identity:
    """One person. Scales are factors of the average face (1 = average); lengths are design units (1/256 image)."""

    face_width: float
    """Width of the whole face, scale, 0.9 to 1.1."""
    jaw_width: float
    """Width of the jaw against the cheekbones, scale, 0.84 to 1.14."""
    chin_width: float
    """Width of the chin, scale, 0.7 to 1.4."""
    chin_length: float
    """How far the chin reaches down, design units, -6 to 6."""
    cheek_fullness: float
    """Roundness of the cheeks, -1 (hollow) to 1 (full)."""
    skin_tone: float
    """0 (light) to 1 (deep)."""
    skin_undertone: float
    """-1 (cool, rosy) to 1 (warm, olive)."""
    blush: float
    """Colour on the cheeks, 0 to 1."""
    freckles: float
    """Density of freckles, 0 (none) to 1."""
    mole_x: float
    """Place of a beauty mark, design units from the middle of the face; see `mole_size`."""
    mole_y: float
    """Place of a beauty mark, design units below the middle of the head."""
    mole_size: float
    """Radius of the beauty mark, design units; 0 for none."""
    wrinkles: float
    """Lines of age at rest, 0 (none) to 1."""
    ear_size: float
    """Scale, 0.75 to 1.3."""
    ear_height: float
    """How far the ears sit below the average, design units, -5 to 5."""
    eye_size: float
    """Width of the eyes, scale, 0.85 to 1.15."""
    eye_openness: float
    """Height of the open eyes against their width, scale, 0.78 to 1.15."""
    eye_spacing: float
    """Distance of each eye from the middle, design units beyond the average, -3 to 3.5."""
    eye_height: float
    """How far the eyes sit below the average, design units, -4 to 4."""
    eye_tilt: float
    """Rise of the outer corner, design units, -2.5 to 3.5."""
    iris_size: float
    """Scale, 0.85 to 1.12."""
    iris_colour: str
    """One of `palette.IRIS_COLOURS`."""
    lash_length: float
    """0 (a plain lid line) to 1 (long lashes)."""
    eyelid_fold: float
    """Strength of the crease above the eye, 0 (monolid) to 1 (deep)."""
    brow_thickness: float
    """Scale, 0.6 to 1.5."""
    brow_length: float
    """Scale, 0.85 to 1.15."""
    brow_height: float
    """How far the brows sit above the average, design units, -3 to 4."""
    brow_arch: float
    """Rise of the arch over the line of the brow, design units, 0 to 5."""
    brow_tilt: float
    """Rise of the outer end, design units, -3 to 3."""
    nose_width: float
    """Scale, 0.75 to 1.35."""
    nose_length: float
    """How far the tip sits below the average, design units, -4 to 4."""
    nose_bridge: float
    """Strength of the shading along the bridge, 0 to 1."""
    mouth_width: float
    """Scale, 0.84 to 1.16."""
    mouth_height: float
    """How far the mouth sits below the average, design units, -3 to 3."""
    upper_lip: float
    """Thickness of the upper lip, scale, 0.5 to 1.5."""
    lower_lip: float
    """Thickness of the lower lip, scale, 0.6 to 1.5."""
    lip_colour: str
    """One of `palette.LIP_COLOURS`; see `lip_tint`."""
    lip_tint: float
    """How much of `lip_colour` is worn, 0 (natural) to 1."""
    hair_style: str
    """One of `HAIR_STYLES`."""
    hair_colour: str
    """One of `palette.HAIR_COLOURS`."""
    hair_grey: float
    """Share of grey in hair, brows and beard, 0 to 1."""
    hair_volume: float
    """Height of the hair over the skull, scale, 0.7 to 1.35."""
    hair_line: float
    """How far the hair line sits above the average, design units, -4 to 7."""
    hair_part: float
    """Side of the parting: -1 (right of the image) or 1."""
    facial_hair: str
    """One of `FACIAL_HAIR`."""
    facial_hair_density: float
    """0.4 (thin) to 1 (full)."""
    glasses: str
    """One of `GLASSES`."""
    glasses_colour: str
    """One of `palette.FRAME_COLOURS`."""
    earrings: str
    """One of `EARRINGS`."""
    neck_width: float
    """Scale, 0.82 to 1.25."""
    shoulder_width: float
    """Scale, 0.86 to 1.16."""
    outfit: str
    """One of `OUTFITS`."""
    outfit_colour: str
    """One of `palette.CLOTH_COLOURS`."""
    outfit_accent: str
    """One of `palette.CLOTH_COLOURS`: collar, trim, stripes, headwear."""
    background: str
    """One of `BACKGROUNDS`."""
    background_colour: str
    """One of `palette.BACKGROUND_COLOURS`."""


# Weights of the hair styles for a feminine and for a masculine presentation.
_HAIR_WEIGHTS: dict[str, tuple[float, float]] = {
    "bald": (0.2, 2.0),
    "receding": (0.0, 1.2),
    "buzz": (0.4, 2.2),
    "short": (0.6, 3.0),
    "side_part": (0.6, 3.0),
    "quiff": (0.5, 2.6),
    "pixie": (1.8, 0.5),
    "fringe_bob": (2.2, 0.1),
    "bob": (2.4, 0.3),
    "long_straight": (3.0, 0.5),
    "long_wavy": (3.0, 0.4),
    "curly": (1.8, 1.6),
    "afro": (1.4, 1.2),
    "top_bun": (1.6, 0.5),
    "space_buns": (1.0, 0.1),
    "ponytail": (2.0, 0.2),
    "headscarf": (1.7, 0.0),
    "beanie": (0.9, 1.2),
}


class _Sampler:
    """Draws named quantities from one PCG64 stream, rounded to 1/1000 so that they survive JSON unchanged."""

    def __init__(self, seed: int):
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def unit(self) -> float:
        return float(self._rng.random())

    def between(self, low: float, high: float) -> float:
        """Bell-shaped between the limits: the mean of two uniform draws."""
        return round(low + (high - low) * 0.5 * (self.unit() + self.unit()), 3)

    def flat(self, low: float, high: float) -> float:
        return round(low + (high - low) * self.unit(), 3)

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def choice(self, weights: dict[str, float]) -> str:
        place = self.unit() * sum(weights.values())
        for name, weight in weights.items():
            place -= weight
            if place < 0.0:
                return name
        return next(reversed(weights))


def sample_identity(seed: int) -> Identity:
    """The person of `seed`, the same on every machine.

    Presentation (feminine to masculine), age and ancestry are latent draws that shift the distributions of the
    visible parameters.

    Args:
        seed: any non-negative integer.

    Raises:
        ValueError: seed is negative.
    """
    if seed < 0:
        raise ValueError(f"identity seed {seed}: must be 0 or more")
    s = _Sampler(seed)
    masculine = s.flat(0.0, 0.25) if s.chance(0.46) else (s.flat(0.75, 1.0) if s.chance(0.88) else s.flat(0.25, 0.75))
    age = s.unit()  # 0 young, 1 old
    age = age * age if s.chance(0.5) else age
    tone = s.flat(0.0, 1.0)

    def lean(low: float, high: float, feminine: float, male: float) -> float:
        """A draw between the limits moved by the presentation, still inside them."""
        value = s.between(low, high) + feminine * (1 - masculine) + male * masculine
        return round(min(max(value, low), high), 3)

    deep = tone > 0.62
    natural_hair = (
        {"black": 6.0, "espresso": 3.0, "brown": 0.8}
        if deep
        else {
            "black": 2.4,
            "espresso": 2.4,
            "brown": 2.4,
            "chestnut": 2.0,
            "auburn": 1.2,
            "ginger": 1.2 if tone < 0.35 else 0.1,
            "blond": 2.0 if tone < 0.4 else 0.3,
            "platinum": 0.9 if tone < 0.4 else 0.1,
        }
    )
    dyed = {"rose": 1.0, "teal": 1.0, "lilac": 1.0, "platinum": 0.8, "auburn": 0.8}
    hair_colour = s.choice(dyed) if s.chance(0.10) else s.choice(natural_hair)
    styles = {name: f + (m - f) * masculine for name, (f, m) in _HAIR_WEIGHTS.items()}
    if deep:
        styles |= {"afro": styles["afro"] * 3.0, "curly": styles["curly"] * 2.0, "long_straight": 0.6}
    if age < 0.45:
        styles |= {"receding": 0.0, "bald": styles["bald"] * 0.5}
    hair_style = s.choice(styles)
    bearded = masculine > 0.6 and s.chance(0.52)
    iris = (
        {"dark_brown": 5.0, "brown": 3.0, "amber": 0.4}
        if tone > 0.55
        else {"dark_brown": 1.6, "brown": 2.4, "hazel": 1.6, "amber": 0.8, "green": 1.8, "blue": 2.4, "grey": 1.2}
    )
    cloth = dict.fromkeys(palette.CLOTH_COLOURS, 1.0)
    outfit_colour = s.choice(cloth)
    backgrounds = {
        name: 1.0
        for name, colour in palette.BACKGROUND_COLOURS.items()
        if _distance(colour, palette.CLOTH_COLOURS[outfit_colour]) > 70.0
    }
    made_up = masculine < 0.5 and s.chance(0.55)
    return Identity(
        face_width=s.between(0.9, 1.1),
        jaw_width=lean(0.84, 1.14, -0.06, 0.06),
        chin_width=lean(0.7, 1.4, -0.14, 0.16),
        chin_length=lean(-6.0, 6.0, -1.2, 1.6),
        cheek_fullness=s.between(-1.0, 1.0),
        skin_tone=tone,
        skin_undertone=s.between(-1.0, 1.0),
        blush=lean(0.0, 1.0, 0.16, -0.2),
        freckles=s.flat(0.35, 1.0) if s.chance(0.30 if tone < 0.5 else 0.08) else 0.0,
        mole_x=s.flat(14.0, 36.0) * (1 if s.chance(0.5) else -1),
        mole_y=s.flat(20.0, 44.0),
        mole_size=s.flat(1.1, 1.8) if s.chance(0.16) else 0.0,
        wrinkles=round(max(0.0, (age - 0.42) / 0.58), 3),
        ear_size=s.between(0.75, 1.3),
        ear_height=s.between(-5.0, 5.0),
        eye_size=lean(0.85, 1.15, 0.03, -0.04),
        eye_openness=lean(0.78, 1.15, 0.04, -0.05),
        eye_spacing=s.between(-3.0, 3.5),
        eye_height=s.between(-4.0, 4.0),
        eye_tilt=s.between(-2.5, 3.5),
        iris_size=s.between(0.85, 1.12),
        iris_colour=s.choice(iris),
        lash_length=lean(0.0, 1.0, 0.28, -0.45),
        eyelid_fold=s.flat(0.0, 1.0),
        brow_thickness=lean(0.6, 1.5, -0.16, 0.2),
        brow_length=s.between(0.85, 1.15),
        brow_height=lean(-3.0, 4.0, 1.0, -1.2),
        brow_arch=lean(0.0, 5.0, 0.8, -1.0),
        brow_tilt=s.between(-3.0, 3.0),
        nose_width=round(min(1.35, s.between(0.75, 1.2) + 0.15 * tone), 3),
        nose_length=s.between(-4.0, 4.0),
        nose_bridge=s.flat(0.0, 1.0),
        mouth_width=s.between(0.84, 1.16),
        mouth_height=s.between(-3.0, 3.0),
        upper_lip=lean(0.5, 1.5, 0.1, -0.24),
        lower_lip=lean(0.6, 1.5, 0.1, -0.16),
        lip_colour=s.choice(dict.fromkeys(palette.LIP_COLOURS, 1.0)),
        lip_tint=s.flat(0.3, 0.9) if made_up else 0.0,
        hair_style=hair_style,
        hair_colour=hair_colour,
        hair_grey=round(min(1.0, max(0.0, (age - 0.55) * 2.4)), 3) if s.chance(0.8) else 0.0,
        hair_volume=s.between(0.7, 1.35),
        hair_line=lean(-4.0, 7.0, -1.0, 1.0),
        hair_part=1.0 if s.chance(0.5) else -1.0,
        facial_hair=s.choice({"stubble": 2.0, "moustache": 1.0, "goatee": 1.2, "beard": 2.2}) if bearded else "none",
        facial_hair_density=s.flat(0.4, 1.0),
        glasses=s.choice(dict.fromkeys(GLASSES[1:], 1.0)) if s.chance(0.28 + 0.14 * age) else "none",
        glasses_colour=s.choice(
            {"black": 3.0, "tortoise": 0.2 if deep else 2.0, "gold": 1.6, "red": 0.8, "navy": 1.0, "clear": 0.6}
        ),
        earrings=s.choice({"stud": 1.0, "hoop": 1.0}) if s.chance(0.45 - 0.36 * masculine) else "none",
        neck_width=lean(0.82, 1.25, -0.08, 0.14),
        shoulder_width=lean(0.86, 1.16, -0.06, 0.07),
        outfit=s.choice(dict.fromkeys(OUTFITS, 1.0)),
        outfit_colour=outfit_colour,
        outfit_accent=s.choice({name: w for name, w in cloth.items() if name != outfit_colour}),
        background=s.choice({"plain": 2.0, "disc": 2.0, "dots": 1.0, "waves": 1.2, "rays": 0.8}),
        background_colour=s.choice(backgrounds),
    )


def _distance(a: palette.Colour, b: palette.Colour) -> float:
    return float(sum(abs(x - y) for x, y in zip(a, b, strict=True)))
