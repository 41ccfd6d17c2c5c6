"""Draws how a trained model keeps its two factors apart: `python benchmarks/factor_sheets.py --help`.

Writes to a folder:

- `factors.png`: a row per person (reference first), a column per expression;
- `identity_scale.png`, `expression_scale.png`: one person, a row per expression, a column per scale of that branch
  while the other stays 1, without guidance, from the same noise;
- `factors.json`: settings, and with `--measure` what the avatar evaluators read: in the grid, in the true drawings of
  the same people and expressions (`seed:N` only), and in the grid drawn again at every scale.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
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
from genaffect_jax.models.face_encoders.encoder import load_expression_encoder, load_identity_encoder
from genaffect_jax.pipeline import AvatarSet, Pipeline

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)
GUIDANCE_BRANCHES = ("identity_scale", "expression_scale")
Encoders = tuple[IdentityEncoder, ExpressionEncoder]


def grid(
    pipeline: Pipeline, identities: Sequence[str], expressions: Sequence[Expression], **settings: Any
) -> list[AvatarSet]:
    """One set per identity, all with the same expressions."""
    return [pipeline(identity, expressions, **settings) for identity in identities]


def grid_sheet(identities: Sequence[str], sets: Sequence[AvatarSet]) -> UInt8[np.ndarray, "H W 3"]:
    """Rows are identities, each after its reference; columns are expressions."""
    tiles = [image for s in sets for image in (s.reference, *s.images)]
    labels = [
        label
        for name, s in zip(identities, sets, strict=True)
        for label in (Path(name).stem, *(e.name for e in s.expressions))
    ]
    return contact_sheet(tiles, labels, columns=1 + len(sets[0].images))


def sweep(
    pipeline: Pipeline, identity: str, expressions: Sequence[Expression], branch: str, **settings: Any
) -> list[AvatarSet]:
    """One set per scale of one branch, the other branch at 1; guidance 1 leaves the scale alone at work."""
    return [
        pipeline(
            identity,
            expressions,
            guidance_identity=1.0,
            guidance_expression=1.0,
            **{**dict.fromkeys(GUIDANCE_BRANCHES, 1.0), branch: scale, **settings},
        )
        for scale in SCALES
    ]


def sweep_sheet(branch: str, sets: Sequence[AvatarSet]) -> UInt8[np.ndarray, "H W 3"]:
    """Rows are expressions, each after the reference; columns are scales."""
    tiles, labels = [], []
    for row, expression in enumerate(sets[0].expressions):
        tiles += [sets[0].reference, *(s.images[row] for s in sets)]
        labels += [expression.name, *(f"{branch.removesuffix('_scale')} x {scale:g}" for scale in SCALES)]
    return contact_sheet(tiles, labels, columns=1 + len(SCALES))


def true_drawings(identities: Sequence[str], sets: Sequence[AvatarSet]) -> list[AvatarSet]:
    """The sets as the avatar denoiser draws them: what the evaluators read in images without a mistake."""
    return [
        dataclasses.replace(
            s,
            images=np.stack(
                [
                    render(sample_identity(int(name.removeprefix("seed:"))), e.vector, len(s.reference))
                    for e in s.expressions
                ]
            ),
        )
        for name, s in zip(identities, sets, strict=True)
    ]


def figures(encoders: Encoders, sets: Sequence[AvatarSet], people: Sequence[AvatarSet]) -> dict[str, Any]:
    """`metrics.factors.FactorFigures` of all images of some sets; the references of `people` are the strangers."""
    return dataclasses.asdict(
        factor_figures(
            *encoders,
            np.concatenate([np.repeat(s.reference[None], len(s.images), 0) for s in sets]),
            np.concatenate([s.images for s in sets]),
            np.stack([e.vector for s in sets for e in s.expressions]),
            np.stack([s.reference for s in people]),
        )
    )


def make_sheets(
    pipeline: Pipeline,
    out: Path,
    identities: Sequence[str],
    expressions: Sequence[Expression],
    swept: Sequence[Expression],
    encoders: Encoders | None,
    **settings: Any,
) -> dict[str, Any]:
    """Draws and measures everything into `out`; returns what `factors.json` holds."""
    sets = grid(pipeline, identities, expressions, **settings)
    write_png(grid_sheet(identities, sets), out / "factors.png")
    report: dict[str, Any] = {
        "model": pipeline.name,
        "identities": list(identities),
        "expressions": [e.name for e in expressions],
        "swept_expressions": [e.name for e in swept],
        **settings,
    }
    if encoders:
        report["measured_by"] = "the avatar evaluators, which no denoiser is trained on"
        report["grid"] = figures(encoders, sets, sets)
        if all(name.startswith("seed:") for name in identities):
            report["true_drawings"] = figures(encoders, true_drawings(identities, sets), sets)
    for branch in GUIDANCE_BRANCHES:
        write_png(sweep_sheet(branch, sweep(pipeline, identities[0], swept, branch, **settings)), out / f"{branch}.png")
        if encoders:
            by_person = [sweep(pipeline, identity, expressions, branch, **settings) for identity in identities]
            report[branch] = {
                f"{scale:g}": figures(encoders, at_scale, sets)
                for scale, at_scale in zip(SCALES, zip(*by_person, strict=True), strict=True)
            }
    write_atomically(out / "factors.json", json.dumps(report, indent=2) + "\n")
    return report


def main(
    model: Path,
    out: Path,
    identities: tuple[str, ...] = tuple(f"seed:{1000001 + i}" for i in range(5)),
    expressions: str = "neutral; joy; surprise; fear; anger; sadness; AU43=1",
    swept: str = "joy; surprise",
    steps: int = 24,
    seed: int = 0,
    measure: bool = False,
    identity_evaluator: str = "package:identity_evaluator",
    expression_evaluator: str = "package:expression_evaluator",
) -> None:
    """Draws the sheets of a trained model.

    Args:
        model: run folder of a training.
        out: folder for the sheets.
        identities: images or `seed:N`, the rows of the grid; the first is the person of the sweep sheets.
        expressions: columns of the grid.
        swept: expressions of the sweep sheets.
        steps: Euler steps.
        seed: seed of the noise.
        measure: let the avatar evaluators measure the grid, and the grid drawn at every scale.
        identity_evaluator: `package:NAME` or a weight file; never an encoder that the model was trained with.
        expression_evaluator: the same for expressions.
    """
    encoders = None
    if measure:
        encoders = (load_identity_encoder(identity_evaluator), load_expression_encoder(expression_evaluator))
    report = make_sheets(
        Pipeline.load(model),
        out,
        identities,
        parse_expressions(expressions),
        parse_expressions(swept),
        encoders,
        steps=steps,
        seed=seed,
    )
    for name in ("grid", *GUIDANCE_BRANCHES) if measure else ():
        print(name, json.dumps(report[name]))
    print(f"{out}: factors.png, identity_scale.png, expression_scale.png, factors.json")


if __name__ == "__main__":
    tyro.cli(main)
