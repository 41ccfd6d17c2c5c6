"""`python -m genaffect_jax.train_encoder`: train one face encoder, of identity or of expression.

    python -m genaffect_jax.train_encoder --config configs/identity_encoder.py --workdir out/identity_avatar

Writes `<name>.safetensors` and `report.json` (held-out people) into the working folder. `--stored DIR` lets several
runs share the drawn avatars. Continuing, Ctrl-C and exit statuses are those of `genaffect_jax.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from genaffect_jax.config import HostsConfig
from genaffect_jax.config.encoders import EncoderRun
from genaffect_jax.presets import parse
from genaffect_jax.training.encoder import train_encoder
from genaffect_jax.training.run import run_reporting_errors


@dataclass(frozen=True)
class Arguments:
    """Train a face encoder."""

    config: Path
    """Preset: a Python file with config()."""
    workdir: Path
    """Working folder: checkpoints, metrics.jsonl, TensorBoard events, sheets, weights, report.json."""
    run: Annotated[EncoderRun, tyro.conf.arg(name="")]
    hosts: HostsConfig = field(default_factory=HostsConfig)
    """Other processes that train with this one; each is started with the same options (docs/training.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status."""
    arguments = parse(Arguments, EncoderRun, argv, Path("configs/identity_encoder.py"))
    return run_reporting_errors(
        lambda console: train_encoder(arguments.run, arguments.workdir, console), arguments.hosts
    )


if __name__ == "__main__":
    sys.exit(main())
