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

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import LoraConfig, to_json
from genaffect_jax.errors import ConfigError
from genaffect_jax.export.trained import TrainedDenoiser
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
    parameters = {name: value for name, value in trained.plain.items() if name not in network.buffers}
    buffers = {name: value for name, value in trained.plain.items() if name in network.buffers}
    text = to_json(dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig())))
    with new_folder(out) as new:
        for file in trained.run_dir.components:
            shutil.copyfile(file, new / file.name)
        merged_dir = RunDir(new)
        merged_dir.config.write_text(text)
        merged = Checkpoints(merged_dir.path)
        merged.save_for_sampling(trained.step, parameters, buffers, text)
        merged.close()
