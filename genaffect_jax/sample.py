"""`python -m genaffect_jax.sample`: draw the avatar set of one identity.

python -m genaffect_jax.sample --model out/avatar_tiny --identity seed:7 --expressions joy,sadness,anger --out out/set
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genaffect_jax.config import ConfigError
from genaffect_jax.data.pictures import DataError
from genaffect_jax.faces.expression_space import ExpressionError
from genaffect_jax.faces.grammar import check_expressions
from genaffect_jax.models.weights import WeightsError
from genaffect_jax.pipeline import Pipeline, check_output
from genaffect_jax.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Arguments:
    """Draw the avatar set of one identity."""

    model: Path
    """Working folder of a training."""
    identity: tuple[str, ...]
    """One to four pictures of one person: picture files, or seed:N for the procedural avatar number N."""
    out: Path
    """Folder for sheet.png, one PNG per picture, and set.json."""
    expressions: str = "joy,sadness,anger,fear,surprise,disgust,neutral"
    """Expressions: words, blends (0.6*joy + 0.4*surprise), action units (AU6=0.5,AU12=0.9), clusters, all, and pictures
    that show one (face.png; face.png:1.3 exaggerates it, face.png:0.5 softens it)."""
    expression_encoder: str | None = None
    """What reads expressions from pictures: package:expression_avatar, a weight file, or the .json of an ONNX encoder;
    else the model's own."""
    align: Literal["none", "face"] | None = None
    """What is done with picture files: none takes the middle square, face finds the face and brings it into the place
    it has in aligned training pictures; left out, what the model was trained on. Drawn characters need none."""
    face_models: Path | None = None
    """Folder of an insightface model pack (.onnx files), or an insightface root with one pack, for --align face."""
    face_index: int = 0
    """Which face of an identity's pictures, counted from the largest, 0; expressions' pictures show their largest."""
    steps: int = 24
    """Denoising steps, at least 1."""
    guidance_identity: float = 1.0
    """Guidance towards the person, at least 0; 1 follows the model as trained, larger exaggerates."""
    guidance_expression: float = 1.5
    """Guidance towards the expression, at least 0; 1 follows the model as trained, larger exaggerates."""
    identity_scale: tuple[float, ...] = (1.0,)
    """Weight of the identity branch, one number or one per layer, at least 0; 1 is as trained, 0 leaves it out."""
    expression_scale: tuple[float, ...] = (1.0,)
    """Weight of the expression branch, one number or one per layer, at least 0; 1 is as trained, 0 leaves it out."""
    identity_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level, in [0, 1], at which identity_scale acts; elsewhere it is 1."""
    expression_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level, in [0, 1], at which expression_scale acts; elsewhere it is 1."""
    seed: int = 0
    """Seed of the noise, at least 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and draws; returns the exit status (2: an argument is not allowed, 1: other errors)."""
    arguments = tyro.cli(Arguments, args=argv, use_underscores=True)
    console = Console(stderr=True)
    try:
        # Everything that the command line alone decides is checked before the model is loaded.
        check_expressions(arguments.expressions)
        check_output(arguments.out)
        pipeline = Pipeline.load(
            arguments.model, arguments.expression_encoder, align=arguments.align, face_models=arguments.face_models,
            face_index=arguments.face_index,
        )  # fmt: skip
        expressions = pipeline.parse(arguments.expressions)
        columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=len(expressions))
            avatars = pipeline(
                arguments.identity, expressions, steps=arguments.steps,
                guidance_identity=arguments.guidance_identity, guidance_expression=arguments.guidance_expression,
                identity_scale=arguments.identity_scale, expression_scale=arguments.expression_scale,
                identity_interval=arguments.identity_interval, expression_interval=arguments.expression_interval,
                seed=arguments.seed, progress=lambda done, _: bar.update(task, completed=done),
            )  # fmt: skip
        avatars.save(arguments.out)
    except (ExpressionError, ConfigError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except (DataError, WeightsError, CheckpointError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    console.print(f"{len(expressions)} pictures in {arguments.out} (see sheet.png and set.json)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
