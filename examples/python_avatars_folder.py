"""Writes a real, independent image folder: the avatars of `python-avatars`, drawn by `resvg`.

    python examples/python_avatars_folder.py --out build/python_avatars
    python -m genaffect_jax.train --config configs/folder_tiny.py --data.root build/python_avatars --workdir W

The art (Pablo Stanley's Avataaars, in the PyPI package `python-avatars`) is not this project's. Every person has a
fixed hair, skin, brow style, nose, clothes, glasses and beard; the expressions are combinations of the package's
mouths, eyes and brows. The table EXPRESSIONS says which expression vector each combination stands for.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import python_avatars as pa
import resvg_py
import tyro

from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.io.progress import progress_bar

# name, brows, eyes, mouth, expression (text of the expression grammar). Words are used where the combination shows
# what the word's vector says; L and R are the person's sides.
EXPRESSIONS: tuple[tuple[str, str, str, str, str], ...] = (
    ("neutral", "DEFAULT", "DEFAULT", "SERIOUS", "neutral"),
    ("joy", "DEFAULT", "HAPPY", "BIG_SMILE", "joy"),
    ("contentment", "DEFAULT", "CLOSED", "TWINKLE", "contentment"),
    ("sadness", "SAD_CONCERNED", "DEFAULT", "SAD", "sadness"),
    ("anger", "ANGRY", "SQUINT", "SERIOUS", "anger"),
    ("surprise", "RAISED_EXCITED", "SURPRISED", "DISBELIEF", "surprise"),
    ("fear", "SAD_CONCERNED", "SURPRISED", "CONCERNED", "fear"),
    ("grimace", "ANGRY", "DEFAULT", "GRIMACE", "AU4=0.9,AU10=0.5,AU20=0.8,AU25=0.7"),
    ("wink", "DEFAULT", "WINK", "SMILE", "AU6L=0.6,AU12=0.7,AU25=0.7,AU43L=1"),
    ("tongue", "RAISED_EXCITED", "HAPPY", "TONGUE", "AU1=0.5,AU2=0.5,AU6=0.8,AU12=0.8,AU19=1,AU25=1,AU26=0.5"),
    ("eye_roll", "DEFAULT", "EYE_ROLL", "SERIOUS", "AU5=0.6,gaze_pitch=0.8"),
    ("doubt", "UP_DOWN", "SIDE", "SERIOUS", "AU1R=0.7,AU2R=0.8,AU4L=0.3,AU7=0.5,gaze_yaw=0.7"),
)

# What people choose from. Left out: hair and hats over the brows or eyes, dark glasses, moustaches over the mouth.
TOPS = (
    *(
        pa.HairType[name]
        for name in (
            "BUN",
            "CAESAR",
            "CAESAR_SIDE_PART",
            "CURLY",
            "CURVY",
            "DREADS",
            "FRIZZLE",
            "FRO",
            "FRO_BAND",
            "LONG_NOT_TOO_LONG",
            "MIA_WALLACE",
            "SHAGGY_MULLET",
            "SHAVED_SIDES",
            "SHORT_CURLY",
            "SHORT_DREADS_1",
            "SHORT_DREADS_2",
            "SHORT_FLAT",
            "SHORT_ROUND",
            "SHORT_WAVED",
            "SIDES",
            "STRAIGHT_1",
            "STRAIGHT_2",
            "STRAIGHT_STRAND",
            "BUZZCUT",
            "CORNROWS",
            "DREADLOCKS",
            "ELVIS",
            "MOHAWK",
            "PIXIE",
            "POMPADOUR",
            "QUIFF",
            "TWIST_LONG_HAIR",
        )
    ),
    pa.HatType.HIJAB,
    pa.HatType.TURBAN,
    pa.HatType.WINTER_HAT_3,
)
SKINS = tuple(pa.SkinColor[n] for n in ("PALE", "LIGHT", "BROWN", "DARK_BROWN", "BLACK"))
ACCESSORIES = tuple(pa.AccessoryType[n] for n in ("NONE", "NONE", "NONE", "PRESCRIPTION_1", "PRESCRIPTION_2", "ROUND"))
BEARDS = tuple(pa.FacialHairType[n] for n in ("NONE", "NONE", "NONE", "BEARD_LIGHT", "BEARD_MEDIUM", "WICK_BEARD"))
CLOTHES = tuple(
    pa.ClothingType[n]
    for n in (
        "BLAZER_SHIRT",
        "BLAZER_SWEATER",
        "COLLAR_SWEATER",
        "HOODIE",
        "OVERALL",
        "SHIRT_CREW_NECK",
        "SHIRT_SCOOP_NECK",
        "SHIRT_V_NECK",
    )
)
BACKGROUNDS = ("#f6d6c9", "#cfe3f2", "#d9ead3", "#f4e3b2", "#e2d6ee", "#d5dbe1")

# The package draws 264 x 280 units with a small face; this square shows head and collar.
WHOLE_VIEW = 'width="264px" height="280px" viewBox="0 0 264 280"'
HEAD_VIEW = 'viewBox="27 3 210 210"'
SETTINGS = "python_avatars.json"


@dataclass(frozen=True)
class Person:
    """What stays the same in all images of one person."""

    parts: dict[str, Any]
    natural_brows: bool
    background: str


def sample_person(seed: int, index: int) -> Person:
    """Draws person `index`; a function of the two numbers, so that more people leave the first ones as they are."""
    rng = np.random.default_rng([seed, index])

    def pick(choices: Any) -> Any:
        choices = list(choices)
        return choices[rng.integers(len(choices))]

    hair_color = pick(pa.HairColor)
    parts = {
        "top": pick(TOPS),
        "skin_color": pick(SKINS),
        "hair_color": hair_color,
        "facial_hair_color": hair_color,
        "hat_color": pick(pa.ClothingColor),
        "facial_hair": pick(BEARDS),
        "accessory": pick(ACCESSORIES),
        "nose": pick(pa.NoseType),
        "clothing": pick(CLOTHES),
        "clothing_color": pick(pa.ClothingColor),
    }
    return Person(parts, bool(rng.integers(2)), pick(BACKGROUNDS))


def render(person: Person, brows: str, eyes: str, mouth: str, size: int) -> bytes:
    """The PNG file, `size` pixels square, of one person with one combination of brows, eyes and mouth."""
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        eyebrows=pa.EyebrowType[f"{brows}_NATURAL" if person.natural_brows else brows],
        eyes=pa.EyeType[eyes],
        mouth=pa.MouthType[mouth],
        shirt_graphic=pa.ClothingGraphic.NONE,
        **person.parts,
    )
    svg = avatar.render()
    if WHOLE_VIEW not in svg:
        raise RuntimeError(f"python-avatars {version('python-avatars')} draws another frame than {WHOLE_VIEW}")
    svg = svg.replace(WHOLE_VIEW, f'width="{size}px" height="{size}px" {HEAD_VIEW}', 1)
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, background=person.background, skip_system_fonts=True))


def write_folder(folder: Path, identities: int, size: int, seed: int) -> None:
    """Writes the images, `metadata.jsonl` and the settings into an empty folder."""
    rows = []
    with progress_bar("drawing avatars", identities * len(EXPRESSIONS)) as step:
        for index in range(identities):
            name = f"person{index:03d}"
            (folder / name).mkdir()
            person = sample_person(seed, index)
            for label, brows, eyes, mouth, expression in EXPRESSIONS:
                file = f"{name}/{label}.png"
                (folder / file).write_bytes(render(person, brows, eyes, mouth, size))
                rows.append({"file": file, "identity": name, "expression": expression})
                step(1)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    versions = {name: version(name) for name in ("python-avatars", "resvg-py")}
    settings = {"identities": identities, "size": size, "seed": seed, "versions": versions}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def main(
    out: Path,
    identities: Annotated[int, tyro.conf.arg(help="Number of people, at least 2.")] = 40,
    size: Annotated[int, tyro.conf.arg(help="Side of the images, in pixels, 16 to 4096.")] = 256,
    seed: Annotated[int, tyro.conf.arg(help="Another seed gives other people; at least 0.")] = 0,
    overwrite: Annotated[bool, tyro.conf.arg(help="Replace a folder that this program wrote.")] = False,
) -> None:
    """Writes a folder of avatars with 12 expressions each, and metadata.jsonl.

    Args:
        out: Folder to make; it appears only when everything is written.
    """
    if identities < 2 or not 16 <= size <= 4096 or seed < 0:
        sys.exit(f"identities={identities} (at least 2), size={size} (16 to 4096), seed={seed} (at least 0)")
    if out.exists() and not overwrite:
        sys.exit(f"{out}: exists already; choose another --out, or --overwrite a folder that this program wrote")
    if out.exists() and not (out / SETTINGS).is_file():
        sys.exit(f"{out}: not written by this program (it has no {SETTINGS}), so it is not overwritten")
    for *_, expression in EXPRESSIONS:
        parse_expression(expression)  # a wrong table fails before any drawing
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write_folder(partial, identities, size, seed)
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {identities * len(EXPRESSIONS)} images of {identities} people")


if __name__ == "__main__":
    tyro.cli(main)
