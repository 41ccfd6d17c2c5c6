"""`python -m genaffect_jax.export lora`: a trained model with its low-rank additions merged into its kernels.

    python -m genaffect_jax.export lora --model W --out MERGED

`MERGED` is a run folder that samples as `W` does, with `model.lora.rank` 0; it cannot be trained further.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import ONNX_EXPRESSION_FILE
from genaffect_jax.config import DenoiserRun, LoraConfig, MeshConfig, from_json, to_json
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.parallel.mesh import make_mesh


@dataclass(frozen=True)
class Arguments:
    """Merge the low-rank additions of a trained model into its kernels."""

    model: Path
    """Run folder of a training with model.lora.rank of at least 1."""
    out: Path
    """Folder to write; it must not exist."""


def run(arguments: Arguments, console: Console) -> bool:
    """Merges and says so; raises what `merge_working_folder` raises."""
    merge_working_folder(arguments.model, arguments.out)
    console.print(f"{arguments.out}: {arguments.model} with its low-rank additions merged")
    return True


def merge_working_folder(workdir: Path, out: Path) -> None:
    """Writes a run folder that samples as `workdir` does, without low-rank additions; it appears whole.

    Its kernels are `W + alpha / r * A @ B` of the newest checkpoint's averages (`models.lora`), its configuration has
    `model.lora.rank` 0. It cannot be trained further.

    Raises:
        ConfigError: `workdir` is no run folder or has no low-rank additions, or `out` exists.
        CheckpointError: there is no complete checkpoint, or it does not fit its configuration.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: exists; name a new folder")
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"--model {workdir}: no run folder of a training (it has no checkpoints/)")
    checkpoints = Checkpoints(workdir)
    config = from_json(DenoiserRun, checkpoints.config())
    network, step = build_networks(config.model)[0], checkpoints.latest_step()
    if not isinstance(network, LoraNetwork) or step is None:
        raise ConfigError(f"--model {workdir}: has no low-rank additions (model.lora.rank=0)")
    plain = network.plain(checkpoints.averaged_parameters(network, make_mesh(MeshConfig())))
    parameters = {name: value for name, value in plain.items() if name not in network.buffers}
    buffers = {name: value for name, value in plain.items() if name in network.buffers}
    text = to_json(dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig())))

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        # All else that a sampler reads: autoencoder, face encoders, word prototypes, prompts.
        onnx = workdir / ONNX_EXPRESSION_FILE
        others = [path for path in (onnx, onnx.with_suffix(".onnx")) if path.exists()]
        for path in (*sorted(workdir.glob("*.safetensors")), *others):
            shutil.copyfile(path, new / path.name)
        (new / "config.json").write_text(text)
        merged = Checkpoints(new)
        merged.save_for_sampling(step, parameters, buffers, text)
        merged.close()
        os.replace(new, out)
