"""`python -m genaffect_jax.merge_lora`: a trained model with its low-rank additions merged into its kernels.

python -m genaffect_jax.merge_lora --model W --out MERGED

`MERGED` is a working folder that samples as `W` does, with `model.lora.rank` 0; it cannot be trained further.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from genaffect_jax.training.merging import merge_working_folder
from genaffect_jax.training.run import run_reporting_errors


@dataclass(frozen=True)
class Arguments:
    """Merge the low-rank additions of a trained model into its kernels."""

    model: Path
    """Working folder of a training with model.lora.rank of at least 1."""
    out: Path
    """Folder to write; it must not exist."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and merges; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, use_underscores=True)

    def work(console: Console) -> bool:
        merge_working_folder(arguments.model, arguments.out)
        console.print(f"{arguments.out}: {arguments.model} with its low-rank additions merged")
        return True

    return run_reporting_errors(work)


if __name__ == "__main__":
    sys.exit(main())
