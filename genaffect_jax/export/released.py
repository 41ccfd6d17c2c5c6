"""`python -m genaffect_jax.export model`: a trained model as a small folder for this package, without checkpoints.

    python -m genaffect_jax.export model --model W --out DIR --dtype int8
    python -m genaffect_jax.sample --model DIR --identity seed:7 --out out/set

`DIR` has the averaged weights in one safetensors file, beside the components and settings of a run folder: what
sampling reads, and nothing that only training needs. The models inside this package are such folders.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from genaffect_jax.checkpoints.averaged_weights import STEP
from genaffect_jax.checkpoints.components import network_file
from genaffect_jax.checkpoints.digests import file_digest, record_files
from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import to_json
from genaffect_jax.errors import ConfigError
from genaffect_jax.export.trained import DTYPES, TrainedModel
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.package_files import PACKAGE_PREFIX
from genaffect_jax.io.weight_file import StoredDType, resolve_weights, save_weights
from genaffect_jax.models.face_encoders.onnx_expression import ONNX_SUFFIX


@dataclass(frozen=True)
class Arguments:
    """Write a trained model as a small folder to sample from."""

    model: Path
    """Run folder of a training."""
    out: Path
    """Folder to write; it must not exist."""
    dtype: Literal["fp32", "bf16", "fp16", "int8"] = "int8"
    """Stored type of denoiser and autoencoder: fp32 loses nothing; int8 has one scale for each output channel and is a
    quarter as large."""
    checkpoint: str = LATEST
    """Checkpoint to export: latest, best (by the loss on held-out people), or the number of a step."""


def run(arguments: Arguments, console: Console) -> bool:
    """Exports and prints one line; raises as `export_model`."""
    dtype: StoredDType = "int8" if arguments.dtype == "int8" else DTYPES[arguments.dtype]
    export_model(arguments.model, arguments.out, dtype, arguments.checkpoint)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    console.print(f"{arguments.out}: {size / 2**20:.1f} MiB, to sample from", soft_wrap=True, highlight=False)
    return True


def export_model(model: Path, out: Path, dtype: StoredDType, checkpoint: str = LATEST) -> None:
    """Writes the folder; it appears whole. Low-rank additions are merged into the kernels.

    A face encoder that is the package's own, to the byte, is left out: only its digest is written.

    Args:
        model: a run folder, or another released model.
        out: the folder.
        dtype: stored type of denoiser and autoencoder. Other components are copied.
        checkpoint: `latest`, `best`, or the number of a step.

    Raises:
        ConfigError: `model` is no run folder, or of a model without decoupled attention, or `out` exists.
        CheckpointError: there is no complete checkpoint, or not the one asked for.
        DataError, WeightsError: a component is missing or damaged.
    """
    if out.exists():
        raise ConfigError("exists; name a new folder", field="out", found=out)
    trained = TrainedModel.load(model, checkpoint)
    config = trained.config
    with new_folder(out) as new:
        run_dir = RunDir(new)
        run_dir.config.write_text(to_json(config), encoding="utf-8")
        save_weights(trained.denoiser, run_dir.denoiser, dtype, config.model, {STEP: str(trained.step)})
        save_weights(trained.autoencoder, run_dir.autoencoder, dtype, config.model.autoencoder)
        written, left_out = [run_dir.denoiser, run_dir.autoencoder], {}
        encoders = {
            trained.run_dir.identity_encoder: config.model.identity_encoder,
            trained.run_dir.expression_encoder: config.model.expression_encoder,
        }
        others = {file for file in trained.run_dir.components if file != trained.run_dir.autoencoder}
        for place in sorted(others | {file for file, source in encoders.items() if source}):
            source, copy = encoders.get(place, ""), new / place.name
            if source.endswith(ONNX_SUFFIX):
                continue  # its files are among the others, under their own names
            file = network_file(trained.run_dir, place, source)
            if source.startswith(PACKAGE_PREFIX) and file_digest(resolve_weights(source)) == file_digest(file):
                left_out[copy] = file
            else:
                shutil.copyfile(file, copy)
                written.append(copy)
        record_files(run_dir, written, left_out)
