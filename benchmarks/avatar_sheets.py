"""Draws the contact sheets of `docs/images/`: `python benchmarks/avatar_sheets.py [--out docs/images]`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.avatars.identity import HAIR_STYLES
from genaffect_jax.expressions.action_units import DEGREES, LOWEST, UNIT_NAMES, WIDTH, expression_vector
from genaffect_jax.expressions.vocabulary import vocabulary

LABEL = 15  # height of a caption, pixels
# Seven expressions by their well-known units (Ekman & Friesen 1978; contempt after Ekman & Heider 1988).
EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "joy": {"AU6": 0.8, "AU12": 1.0, "AU25": 0.8},
    "sadness": {"AU1": 1.0, "AU4": 0.6, "AU15": 1.0, "AU17": 0.5},
    "anger": {"AU4": 1.0, "AU5": 0.6, "AU7": 0.7, "AU23": 0.8, "AU24": 0.4},
    "surprise": {"AU1": 1.0, "AU2": 1.0, "AU5": 0.9, "AU25": 0.6, "AU26": 1.0},
    "fear": {"AU1": 1.0, "AU2": 0.6, "AU4": 0.6, "AU5": 1.0, "AU20": 1.0, "AU25": 0.8, "AU26": 0.3},
    "disgust": {"AU9": 1.0, "AU10": 0.8, "AU15": 0.5, "AU4": 0.5, "AU17": 0.4, "AU7": 0.4},
    "contempt": {"AU12L": 0.7, "AU14L": 1.0},
}


def sheet(cells: list[tuple[str, np.ndarray]], columns: int) -> Image.Image:
    """Images of one size in rows, each with its caption below (no strip where no caption is given)."""
    size = len(cells[0][1])
    strip = LABEL if any(label for label, _ in cells) else 0
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * size, rows * (size + strip)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for i, (label, image) in enumerate(cells):
        x, y = i % columns * size, i // columns * (size + strip)
        page.paste(Image.fromarray(image), (x, y))
        pen.text((x + size / 2, y + size + 1), label, fill=(60, 60, 70), font=font, anchor="ma")
    return page


def identities() -> Image.Image:
    rest = expression_vector({})
    return sheet([("", render(sample_identity(seed), rest, 128)) for seed in range(64)], 8)


def hair() -> Image.Image:
    rest, cells = expression_vector({}), []
    for i, style in enumerate(HAIR_STYLES):
        person = dataclasses.replace(sample_identity(7 * i), hair_style=style, glasses="none", hair_grey=0.0)
        cells.append((style, render(person, rest, 160)))
    return sheet(cells, 6)


def expressions() -> Image.Image:
    cells = []
    for seed in (0, 6, 3, 20, 22, 33):
        for name, units in EXPRESSIONS.items():
            cells.append((name, render(sample_identity(seed), expression_vector(units), 144)))
    return sheet(cells, len(EXPRESSIONS))


def units() -> Image.Image:
    person = dataclasses.replace(sample_identity(22), glasses="none")
    steps, cells = (0.25, 0.5, 0.75, 1.0), []
    for unit in UNIT_NAMES:
        for value in steps:
            cells.append((f"AU{unit} = {value:g}", render(person, expression_vector({f"AU{unit}": value}), 112)))
    for channel in DEGREES:
        for value in (-1.0, -0.5, 0.5, 1.0):
            cells.append((f"{channel} = {value:g}", render(person, expression_vector({channel: value}), 112)))
    return sheet(cells, 12)


def extremes() -> Image.Image:
    cells: list[tuple[str, np.ndarray]] = []
    blends: dict[str, dict[str, float]] = {
        "smile + frown": {"AU12": 1, "AU15": 1},
        "pucker + smile": {"AU18": 1, "AU12": 1},
        "pucker + stretch": {"AU18": 1, "AU20": 1, "AU25": 1},
        "jaw + press": {"AU27": 1, "AU24": 1},
        "jaw + smile": {"AU27": 1, "AU12": 1, "AU6": 1},
        "jaw + frown": {"AU27": 1, "AU15": 1, "AU1": 1},
        "tongue + smile": {"AU19": 1, "AU12": 1, "AU25": 1},
        "tongue + jaw": {"AU19": 1, "AU27": 1},
        "wide + closed": {"AU5": 1, "AU43": 1},
        "wide + tight": {"AU5": 1, "AU7": 1, "AU6": 1},
        "wink + turn": {"AU43L": 1, "AU12": 1, "head_yaw": 0.8},
        "snarl, one side": {"AU10R": 1, "AU9R": 1, "AU4": 1},
    }
    for name, channels in blends.items():
        cells.append((name, render(sample_identity(3), expression_vector(channels), 144)))
    for i in range(12):
        rng = np.random.Generator(np.random.PCG64(i))
        values = np.where(LOWEST < 0.0, 2.0 * rng.random(WIDTH) - 1.0, rng.random(WIDTH)).astype(np.float32)
        cells.append((f"random {i}", render(sample_identity(40 + i), values, 144)))
    for name, value in (("all units at 1", 1.0), ("all units at 0.5", 0.5)):
        everything = np.where(LOWEST < 0.0, 0.0, value).astype(np.float32)
        cells += [(name, render(sample_identity(seed), everything, 144)) for seed in (3, 6, 16, 33)]
    return sheet(cells, 8)


def words() -> Image.Image:
    person = sample_identity(19)
    cells = [
        (f"{word.name} *" if word.provenance == "published" else word.name, render(person, word.vector, 96))
        for word in vocabulary().values()
    ]
    return sheet(cells, 15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the sheets")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, make in {
        "identities": identities,
        "hair": hair,
        "expressions": expressions,
        "units": units,
        "extremes": extremes,
        "words": words,
    }.items():
        path = arguments.out / f"avatars_{name}.png"
        make().save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
