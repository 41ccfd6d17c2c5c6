"""`python -m genaffect_jax.export merge`: merge the low-rank additions of a trained model into its kernels.

    python -m genaffect_jax.export merge --model W --out MERGED

`MERGED` is a run folder that gives the same images as `W`, with `model.lora.rank` 0; it cannot be trained further.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import LoraConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.export.trained import TrainedDenoiser, write_denoiser
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.models.lora import LoraNetwork


@dataclass(frozen=True)
class Arguments:
    """Merge the low-rank additions of a trained model into its kernels."""

    model: Path
    """Run folder of a training with model.lora.rank of at least 1."""
    out: Path
    """Folder to write; it must not exist."""


def run(arguments: Arguments, console: Console) -> bool:
    """Merges and prints one line; raises as `merge_lora`."""
    merge_lora(arguments.model, arguments.out)
    console.print(f"{arguments.out}: {arguments.model} with its low-rank additions merged")
    return True


def merge_lora(model: Path, out: Path) -> None:
    """Writes a run folder that gives the same images as `model`, without low-rank additions; it appears whole.

    Its kernels are `W + alpha / r * A @ B` of the newest checkpoint's averages (`models.lora`), its configuration has
    `model.lora.rank` 0. It can be sampled from but not trained further.

    Raises:
        ConfigError: `model` is no run folder or has no low-rank additions, or `out` exists.
        CheckpointError: there is no complete checkpoint, or it does not fit its configuration.
    """
    if out.exists():
        raise ConfigError("exists; name a new folder", field="out", found=out)
    trained = TrainedDenoiser(model)
    network, config = trained.network, trained.config
    if not isinstance(network, LoraNetwork):
        raise ConfigError("has no low-rank additions (model.lora.rank=0)", field="model", found=model)
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))
    with new_folder(out) as new:
        for file in trained.run_dir.components:
            shutil.copyfile(file, new / file.name)
        write_denoiser(RunDir(new), plain, trained.step, trained.plain)
