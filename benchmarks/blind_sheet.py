"""A sheet of the model's images and the renderer's, mixed, to find out which can be told apart by eye.

    python benchmarks/blind_sheet.py --out out/blind          then look at sheet.png, and open answers.json last

Half of the tiles are generated, half rendered, each of another person that no training saw, with another word, before a
plain number as its only label. Order, people and words follow from the seed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import tyro

from genaffect_jax.evaluation.procedural_people import true_images
from genaffect_jax.evaluation.protocol import FIRST_PERSON, word_names
from genaffect_jax.io.image_grid import contact_sheet, write_png
from genaffect_jax.io.package_files import DEFAULT_MODEL
from genaffect_jax.parallel.xla import use_compilation_cache
from genaffect_jax.pipeline import Pipeline


def main(out: Path, model: Path = Path(DEFAULT_MODEL), tiles: int = 24, seed: int = 0) -> None:
    """Writes the sheet and the answers.

    Args:
        out: Folder for sheet.png and answers.json.
        model: Run folder of a training, folder of a released model, or package:NAME.
        tiles: Images, half of each kind.
        seed: Of people, words and order.
    """
    use_compilation_cache()
    pipeline, chance = Pipeline.load(model), random.Random(seed)
    people = chance.sample(range(1000, 2000), tiles)
    words = chance.sample(sorted(word_names()), tiles)
    generated = set(chance.sample(range(tiles), tiles // 2))
    images = []
    for tile, (person, word) in enumerate(zip(people, words, strict=True)):
        expression = pipeline.parse(word)
        if tile in generated:
            images.append(pipeline(f"seed:{FIRST_PERSON + person}", expression, seed=seed).images[0])
        else:
            images.append(true_images(person, np.stack([expression[0].vector]), pipeline.config.model.image_size)[0])
    out.mkdir(parents=True, exist_ok=True)
    write_png(contact_sheet(images, [str(tile) for tile in range(tiles)], columns=6), out / "sheet.png")
    answers = {
        tile: {"kind": "generated" if tile in generated else "rendered", "person": FIRST_PERSON + person, "word": word}
        for tile, (person, word) in enumerate(zip(people, words, strict=True))
    }
    (out / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
