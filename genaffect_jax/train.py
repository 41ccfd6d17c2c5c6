"""`python -m genaffect_jax.train`: train the generator.

    python -m genaffect_jax.train --config configs/avatar_tiny.py --workdir out/avatar_tiny

A working folder that holds checkpoints is continued. Ctrl-C (or SIGTERM) finishes the step, saves and exits with
status 130; the same command goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from genaffect_jax.config import Config, HostsConfig
from genaffect_jax.presets import parse
from genaffect_jax.training.generator import train_generator
from genaffect_jax.training.run import run_reporting_errors


@dataclass(frozen=True)
class Arguments:
    """Train the generator on sets of pictures."""

    config: Path
    """Preset: a Python file with config()."""
    workdir: Path
    """Working folder: checkpoints, metrics.jsonl, TensorBoard events, sheets."""
    run: Annotated[Config, tyro.conf.arg(name="")]
    hosts: HostsConfig = field(default_factory=HostsConfig)
    """Other processes that train with this one; each is started with the same options (docs/training.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status."""
    arguments = parse(Arguments, Config, argv, Path("configs/avatar_tiny.py"))
    return run_reporting_errors(
        lambda console: train_generator(arguments.run, arguments.workdir, console), arguments.hosts
    )


if __name__ == "__main__":
    sys.exit(main())
