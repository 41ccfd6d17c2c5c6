"""`python -m genaffect_jax.sample`: draw the avatar set of one identity.

python -m genaffect_jax.sample --model out/avatar_tiny --identity seed:7 --expressions joy,sadness,anger --out out/set
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genaffect_jax.config import ConfigError
from genaffect_jax.data.pictures import DataError
from genaffect_jax.faces.grammar import ExpressionError, parse_expressions
from genaffect_jax.models.weights import WeightsError
from genaffect_jax.pipeline import Pipeline, check_output
from genaffect_jax.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Arguments:
    """Draw the avatar set of one identity."""

    model: Path
    """Working folder of a training."""
    identity: str
    """A picture file, or seed:N for the procedural avatar number N."""
    out: Path
    """Folder for sheet.png, one PNG per picture, and set.json."""
    expressions: str = "joy,sadness,anger,fear,surprise,disgust,neutral"
    """Expressions: words, blends (0.6*joy + 0.4*surprise), action units (AU6=0.5,AU12=0.9), clusters, all."""
    steps: int = 24
    """Denoising steps, at least 1."""
    guidance_identity: float = 1.0
    """Guidance towards the person, at least 0; 1 follows the model as trained, larger exaggerates."""
    guidance_expression: float = 1.5
    """Guidance towards the expression, at least 0; 1 follows the model as trained, larger exaggerates."""
    seed: int = 0
    """Seed of the noise, at least 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and draws; returns the exit status (2: an argument is not allowed, 1: other errors)."""
    arguments = tyro.cli(Arguments, args=argv, use_underscores=True)
    console = Console(stderr=True)
    try:
        # Everything that the command line alone decides is checked before the model is loaded.
        expressions = parse_expressions(arguments.expressions)
        check_output(arguments.out)
        pipeline = Pipeline.load(arguments.model)
        columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=len(expressions))
            avatars = pipeline(
                arguments.identity, expressions, steps=arguments.steps,
                guidance_identity=arguments.guidance_identity, guidance_expression=arguments.guidance_expression,
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
