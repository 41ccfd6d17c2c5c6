"""`python -m genaffect_jax.train`: train the denoiser, the autoencoder or a face encoder, by the class of the preset.

    python -m genaffect_jax.train --config configs/avatar_tiny.py --workdir out/avatar_tiny

A run folder that holds checkpoints is continued. Ctrl-C (or SIGTERM) finishes the step, saves and exits with status
130; the same command continues the run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from rich.console import Console

from genaffect_jax import cli
from genaffect_jax.checkpoints.claim import held_run_folder
from genaffect_jax.config import AutoencoderRun, DenoiserRun, DistributedConfig, EncoderRun
from genaffect_jax.training.autoencoder.task import train_autoencoder
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.face_encoder.task import train_encoder

TRAININGS: dict[type, Callable[..., bool]] = {
    DenoiserRun: train_denoiser,
    AutoencoderRun: train_autoencoder,
    EncoderRun: train_encoder,
}
Run = TypeVar("Run")


@dataclass(frozen=True)
class Arguments(Generic[Run]):
    """Train the network that the preset describes."""

    workdir: Path
    """Run folder: checkpoints, metrics.jsonl, TensorBoard events, sample sheets, weights."""
    config: Path
    """Preset: a Python file with config()."""
    run: Annotated[Run, tyro.conf.arg(name="")]
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Other processes of the same training; each is started with the same options
    (docs/guide/launch.md#several-hosts)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit status."""
    arguments: Any = cli.parse_with_preset(Arguments, list(TRAININGS), argv, Path("configs/avatar_tiny.py"))
    train = TRAININGS[type(arguments.run)]

    def work(console: Console) -> bool:
        with held_run_folder(arguments.workdir):
            return train(arguments.run, arguments.workdir, console)

    return cli.run(work, arguments.distributed)


if __name__ == "__main__":
    sys.exit(main())
