"""The colours of the avatars: skin, hair, iris, lips, cloth and background ramps that go together."""

from __future__ import annotations

from dataclasses import dataclass

from genaffect_jax.avatars.canvas import Colour

# Light to deep; `Identity.skin_tone` in [0, 1] runs along the ramp.
SKIN_RAMP: tuple[Colour, ...] = (
    (255, 226, 206),
    (250, 210, 182),
    (240, 190, 154),
    (224, 168, 126),
    (201, 141, 98),
    (168, 111, 74),
    (132, 84, 56),
    (98, 61, 43),
)
HAIR_COLOURS: dict[str, Colour] = {
    "black": (43, 38, 48),
    "espresso": (66, 46, 42),
    "brown": (104, 68, 48),
    "chestnut": (142, 82, 50),
    "auburn": (158, 66, 42),
    "ginger": (214, 112, 48),
    "blond": (228, 180, 104),
    "platinum": (240, 222, 182),
    "rose": (226, 122, 150),
    "teal": (52, 142, 150),
    "lilac": (150, 122, 204),
}
GREY: Colour = (206, 206, 214)
IRIS_COLOURS: dict[str, Colour] = {
    "dark_brown": (84, 52, 38),
    "brown": (128, 78, 44),
    "hazel": (146, 116, 58),
    "amber": (184, 124, 44),
    "green": (84, 142, 92),
    "blue": (74, 134, 190),
    "grey": (122, 140, 156),
}
CLOTH_COLOURS: dict[str, Colour] = {
    "navy": (52, 66, 108),
    "coral": (238, 112, 96),
    "mustard": (236, 178, 72),
    "sage": (124, 164, 132),
    "plum": (128, 76, 120),
    "sky": (112, 170, 222),
    "cream": (246, 234, 214),
    "charcoal": (68, 72, 84),
    "brick": (186, 80, 66),
    "teal": (44, 128, 132),
    "white": (250, 250, 252),
    "lavender": (176, 160, 220),
}
BACKGROUND_COLOURS: dict[str, Colour] = {
    "peach": (255, 214, 190),
    "mint": (192, 230, 212),
    "sky": (186, 218, 244),
    "lilac": (216, 204, 244),
    "butter": (252, 232, 176),
    "rose": (250, 204, 212),
    "sand": (236, 224, 206),
    "aqua": (170, 222, 226),
    "slate": (190, 200, 216),
    "teal": (104, 176, 176),
    "indigo": (128, 136, 206),
    "coral": (250, 164, 146),
}
FRAME_COLOURS: dict[str, Colour] = {
    "black": (44, 42, 52),
    "tortoise": (124, 74, 44),
    "gold": (206, 160, 84),
    "red": (196, 62, 66),
    "navy": (52, 70, 124),
    "clear": (206, 214, 224),
}
WHITE: Colour = (255, 255, 255)
TEETH: Colour = (252, 250, 246)
TONGUE: Colour = (226, 108, 112)
MOUTH_INSIDE: Colour = (92, 28, 38)
METAL: Colour = (240, 200, 110)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """`a` at t=0, `b` at t=1, rounded to whole 8-bit levels."""
    return (
        round(a[0] + (b[0] - a[0]) * t),
        round(a[1] + (b[1] - a[1]) * t),
        round(a[2] + (b[2] - a[2]) * t),
    )


def shade(colour: Colour, amount: float) -> Colour:
    """Darker for amount < 0 (towards a cool shadow), lighter for amount > 0; amount in [-1, 1]."""
    return mix(colour, (32, 16, 52), -amount) if amount < 0 else mix(colour, (255, 252, 240), amount)


@dataclass(frozen=True)
class Skin:
    """One skin colour and the tones that shading, lines, lips and blush use on it."""

    base: Colour
    light: Colour
    shadow: Colour
    line: Colour
    lips: Colour
    blush: Colour


def skin(tone: float, undertone: float, lip_tint: float, lip_colour: Colour) -> Skin:
    """The skin tones for `tone` (0 light, 1 deep), `undertone` (-1 cool rose, 1 warm olive).

    `lip_tint` in [0, 1] moves the lips from their natural colour to `lip_colour`.
    """
    place = tone * (len(SKIN_RAMP) - 1)
    i = min(int(place), len(SKIN_RAMP) - 2)
    base = mix(SKIN_RAMP[i], SKIN_RAMP[i + 1], place - i)
    base = mix(base, (226, 120, 120) if undertone < 0 else (206, 164, 84), 0.2 * abs(undertone))
    shadow = mix(base, mix((150, 50, 52), (58, 18, 30), tone), 0.24 + 0.08 * tone)
    line = mix(base, (78, 20, 30), 0.58)
    natural = mix(mix(base, (206, 74, 84), 0.46), (70, 20, 34), 0.22 * tone)
    return Skin(
        base=base,
        light=mix(base, (255, 244, 224), 0.34 - 0.14 * tone),
        shadow=shadow,
        line=line,
        lips=mix(natural, lip_colour, lip_tint),
        blush=mix((246, 104, 100), (176, 52, 48), tone),
    )


LIP_COLOURS: dict[str, Colour] = {
    "rose": (214, 84, 104),
    "red": (200, 40, 54),
    "berry": (146, 40, 84),
    "coral": (238, 104, 88),
    "nude": (190, 112, 94),
}
