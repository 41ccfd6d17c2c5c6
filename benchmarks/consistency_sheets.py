"""What sharing does to the images of a set, measured: `python benchmarks/consistency_sheets.py --help`.

Draws the same people and expressions with every setting of `SETTINGS` and writes to a folder:

- `consistency.png`: one person, the true drawings, then a row per setting of `SHOWN` or `--only`, each after the
  reference; a column per expression;
- `consistency.json`: what the avatar evaluators read for each setting, and how far its images are from the default's;
- `consistency.md`: the same as a table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import UInt8

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.data.face_encoders import ExpressionEncoder, IdentityEncoder
from genaffect_jax.expressions.grammar import Expression, parse_expressions
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.image_grid import contact_sheet, write_png
from genaffect_jax.metrics.factors import factor_figures
from genaffect_jax.metrics.identity import mean_cosine
from genaffect_jax.metrics.image_quality import background_variation
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.parallel.xla import use_compilation_cache
from genaffect_jax.pipeline import Pipeline

SHARED_NOISE = {"set_seed_noise": "shared"}
HALF = {"consistency": 0.5}


def settings_of(steps: int, layers: int) -> dict[str, dict[str, Any]]:
    """Name to changes of the sampling settings, for a model of so many layers; the first is what others are held to."""
    early, half = tuple(range(layers * 2 // 5)), steps // 2
    late = tuple(range(len(early), layers))
    return {
        "0.5": HALF,
        "0": {"consistency": 0.0},
        "0.3": {"consistency": 0.3},
        "1": {"consistency": 1.0},
        "0, one noise": {"consistency": 0.0, **SHARED_NOISE},
        "0.5, one noise": {**HALF, **SHARED_NOISE},
        "1, one noise": {"consistency": 1.0, **SHARED_NOISE},
        "0.5, 2 anchors": {**HALF, "anchors": 2},
        f"0.5, layers {early[0]}-{early[-1]}": {**HALF, "consistency_layers": early},
        f"0.5, layers {late[0]}-{late[-1]}": {**HALF, "consistency_layers": late},
        "0.5, first half": {**HALF, "consistency_end": half},
        "0.5, second half": {**HALF, "consistency_start": half},
        "0.5, guided 0.2-0.9": {**HALF, "guidance_interval": (0.2, 0.9)},
        "0.5, not guided": {**HALF, "guidance": 1.0},
        "0.5, expression guided 2.5": {**HALF, "guidance_expression": 2.5},
        "0.5, one noise, expression guided 2.5": {**HALF, **SHARED_NOISE, "guidance_expression": 2.5},
        "0, expression guided 1": {"consistency": 0.0, "guidance_expression": 1.0},
        "0, block cache 2": {"consistency": 0.0, "block_cache_interval": 2},
        "0, block cache 3": {"consistency": 0.0, "block_cache_interval": 3},
        "0, half the steps": {"consistency": 0.0, "steps": max(1, half)},
    }


# Rows of the sheet and their labels.
SHOWN = {"0": "apart", "0.3": "0.3 shared", "0.5": "0.5 shared", "1": "all shared", "0, one noise": "apart, one noise"}


@dataclass(frozen=True)
class Figures:
    """What was measured of one setting, over all people."""

    identity_cosine: float
    """Mean cosine of an image to the reference."""
    set_cosine: float
    """Mean cosine of two images of one set, to the identity evaluator."""
    expression_error: float
    """Mean absolute difference of the read to the wanted vector."""
    background_variation: float
    """How much a set varies where the true drawings of its expressions are all alike (background, clothes, hair):
    standard deviation of a pixel over the set, in levels of 255."""
    change: float
    """Mean absolute difference to the first setting's images, in levels of 255."""


def true_images(seed: int, expressions: Sequence[Expression], side: int) -> UInt8[np.ndarray, "E S S 3"]:
    """The set as the avatar denoiser draws it."""
    person = sample_identity(seed)
    return np.stack([render(person, e.vector, side) for e in expressions])


def measure(
    encoders: tuple[IdentityEncoder, ExpressionEncoder],
    references: Sequence[UInt8[np.ndarray, "S S 3"]],
    expressions: Sequence[Expression],
    images: Sequence[UInt8[np.ndarray, "E S S 3"]],
    truth: Sequence[UInt8[np.ndarray, "E S S 3"]],
    against: Sequence[UInt8[np.ndarray, "E S S 3"]],
) -> Figures:
    """Figures of one setting; `images`, `truth` and `against` have one set for each person."""
    read = factor_figures(
        *encoders,
        np.concatenate([np.repeat(r[None], len(expressions), 0) for r in references]),
        np.concatenate(images),
        np.stack([e.vector for _ in references for e in expressions]),
        np.stack(references),
    )
    pairs = zip(images, against, strict=True)
    return Figures(
        identity_cosine=read.identity_cosine,
        set_cosine=mean_cosine(np.stack([encoders[0](one) for one in images])),
        expression_error=read.expression_error,
        background_variation=float(
            np.mean([background_variation(one, true) for one, true in zip(images, truth, strict=True)])
        ),
        change=float(np.mean([np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() for a, b in pairs])),
    )


def table(report: dict[str, dict[str, float]]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| setting | cosine to the reference | cosine within a set | expression error | background variation "
        "| change |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report.items():
        lines.append(
            f"| {name} | {row['identity_cosine']:.3f} | {row['set_cosine']:.3f} | {row['expression_error']:.4f} "
            f"| {row['background_variation']:.2f} | {row['change']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def sheet(
    reference: UInt8[np.ndarray, "S S 3"],
    expressions: Sequence[Expression],
    rows: dict[str, UInt8[np.ndarray, "E S S 3"]],
) -> UInt8[np.ndarray, "H W 3"]:
    """One row of images for each entry, after the reference, which bears its name; columns are expressions."""
    tiles, labels = [], []
    for name, images in rows.items():
        tiles += [reference, *images]
        labels += [name, *(e.name for e in expressions)]
    return contact_sheet(tiles, labels, columns=1 + len(expressions))


def main(
    model: Path,
    out: Path,
    people: tuple[int, ...] = (1000001, 1000002, 1000003, 1000004, 1000005, 1000006),
    expressions: str = "neutral; joy; surprise; fear; anger; sadness; AU43=1",
    steps: int = 8,
    seed: int = 0,
    only: tuple[str, ...] = (),
    identity_evaluator: str = "package:identity_evaluator",
    expression_evaluator: str = "package:expression_evaluator",
) -> None:
    """Draws and measures.

    Args:
        model: run folder of a training.
        out: folder for the results.
        people: numbers of procedural avatars that the model was not trained on, at least two; the first is shown.
        expressions: images of each set.
        steps: Euler steps, at least 2.
        seed: seed of noise and shared tokens.
        only: names of settings; left out, all. The first is what the others are held to.
        identity_evaluator: `package:NAME` or a weight file; never an encoder that the model was trained with.
        expression_evaluator: the same for expressions.
    """
    use_compilation_cache()
    encoders = load_identity_encoder(identity_evaluator), load_expression_encoder(expression_evaluator)
    pipeline, wanted = Pipeline.load(model), parse_expressions(expressions)
    side = pipeline.config.model.image_size
    truth = [true_images(number, wanted, side) for number in people]
    known = settings_of(steps, pipeline.config.model.mmdit.num_layers)
    if unknown := sorted(set(only) - set(known)):
        raise SystemExit(f"error: --only {unknown}: the settings are {list(known)}")
    names = {name: known[name] for name in only or known}
    figures, drawn, references, first = {}, {}, [], None
    for name, changes in names.items():
        sets = [pipeline(f"seed:{number}", wanted, **{"steps": steps, "seed": seed, **changes}) for number in people]
        images, references = [s.images for s in sets], [s.reference for s in sets]
        first = first or images
        figures[name] = dataclasses.asdict(measure(encoders, references, wanted, images, truth, first))
        drawn[name] = images[0]
        print(name, json.dumps(figures[name]), flush=True)
    assert first is not None
    figures["true drawings"] = dataclasses.asdict(measure(encoders, references, wanted, truth, truth, first))
    report = {
        "model": pipeline.name,
        "people": list(people),
        "expressions": [e.name for e in wanted],
        "steps": steps,
        "seed": seed,
        "measured_by": [e.name for e in encoders],
        "figures": figures,
    }
    rows = {SHOWN.get(name, name): drawn[name] for name in only or SHOWN}
    write_png(sheet(references[0], wanted, {"true drawings": truth[0], **rows}), out / "consistency.png")
    for name, text in (("consistency.json", json.dumps(report, indent=2) + "\n"), ("consistency.md", table(figures))):
        write_atomically(out / name, text)
    print(table(figures))


if __name__ == "__main__":
    tyro.cli(main)
