"""`python -m genaffect_jax.train_autoencoder`: train the picture autoencoder that the generator's latents come from.

    python -m genaffect_jax.train_autoencoder --config configs/autoencoder_tiny.py --workdir out/autoencoder

Writes `autoencoder.safetensors` into the working folder; a generator takes it as `--model.autoencoder_weights FILE`.
Continuing, Ctrl-C and exit statuses are those of `genaffect_jax.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from genaffect_jax.config import AutoencoderRun, HostsConfig
from genaffect_jax.presets import parse
from genaffect_jax.training.autoencoder import train_autoencoder
from genaffect_jax.training.run import run_reporting_errors


@dataclass(frozen=True)
class Arguments:
    """Train the picture autoencoder."""

    config: Path
    """Preset: a Python file with config()."""
    workdir: Path
    """Working folder: checkpoints, metrics.jsonl, TensorBoard events, sheets, autoencoder.safetensors."""
    run: Annotated[AutoencoderRun, tyro.conf.arg(name="")]
    hosts: HostsConfig = field(default_factory=HostsConfig)
    """Other processes that train with this one; each is started with the same options (docs/training.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status."""
    arguments = parse(Arguments, AutoencoderRun, argv, Path("configs/autoencoder_tiny.py"))
    return run_reporting_errors(
        lambda console: train_autoencoder(arguments.run, arguments.workdir, console), arguments.hosts
    )


if __name__ == "__main__":
    sys.exit(main())
