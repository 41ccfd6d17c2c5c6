"""`python -m genaffect_jax.export from-torch`: an exported folder, trained further in PyTorch or not, as a run folder.

    python -m genaffect_jax.export from-torch DIR --out M

`DIR` is a folder of `export diffusers`, or what `save_pretrained` of its pipeline wrote. `M` gives the same images, and
exactly the same parameters if the weights were stored as float32. It can be sampled from and exported, not trained
further.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import tyro
from rich.console import Console

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, from_json
from genaffect_jax.errors import ConfigError, WeightsError, listed
from genaffect_jax.export.trained import write_denoiser
from genaffect_jax.interop.diffusers.adapter import read_adapter, read_run, unite
from genaffect_jax.interop.diffusers.face_encoder import read_face_encoder
from genaffect_jax.interop.diffusers.folders import PIPELINE_FILE
from genaffect_jax.interop.diffusers.pipeline_folder import scheduler_shift
from genaffect_jax.interop.diffusers.register_tokens import prompted_config, register_parameters
from genaffect_jax.interop.diffusers.weights import read_autoencoder, read_transformer, read_transformer_config
from genaffect_jax.interop.torch.expressions_folder import read_expressions
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.exchange import STAGE
from genaffect_jax.io.weight_file import checksum, save_weights
from genaffect_jax.models.functional import Parameters

# Settings of the transformer that its weights do not depend on, and that diffusers' config.json does not have.
_FREE = ("scan_layers", "remat")


@dataclass(frozen=True)
class Arguments:
    """Make a run folder of an exported folder."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of an export, trained further in PyTorch or not."""
    out: Path
    """Run folder to write; it must not exist."""
    variant: str | None = None
    """Variant of the weight files, if save_pretrained was given one, such as fp16; None for files without a variant."""


def run(arguments: Arguments, console: Console) -> bool:
    """Converts and prints one line; raises as `from_torch`."""
    from_torch(arguments.folder, arguments.out, arguments.variant)
    console.print(f"{arguments.out}: run folder of {arguments.folder}, to sample from")
    shift = scheduler_shift(arguments.folder)
    console.print(f"noise schedule: shift {shift:g} of scheduler_config.json, where diffusers does not save set_shift")
    return True


def from_torch(folder: Path, out: Path, variant: str | None = None) -> None:
    """Writes the run folder; it appears whole.

    Args:
        folder: the exported folder.
        out: the run folder.
        variant: variant of the weight files of all components; None for the files without one.

    Raises:
        ConfigError: `out` exists, or `folder` is no folder of an export.
        WeightsError: a component is missing, damaged or of another model, or a parameter is not finite.
    """
    if out.exists():
        raise ConfigError("exists; name a new folder", field="out", found=out)
    if not (folder / PIPELINE_FILE).is_file():
        killed = any(folder.glob(f"{STAGE}*"))
        why = "; an export to it was killed: repeat it with overwrite, which restores what was there" if killed else ""
        raise ConfigError(f"no exported folder (it has no {PIPELINE_FILE}){why}", field="folder", found=folder)
    origin = read_run(folder)
    try:
        config = from_json(DenoiserRun, json.dumps(origin["config"]))
        step = int(origin["step"])
    except (ConfigError, KeyError, TypeError, ValueError) as e:
        raise WeightsError(f"{folder}: the adapter's config.json describes no run: {e}") from e
    if step < 0:
        raise WeightsError(f"{folder}: the adapter's config.json says step {step}, must be at least 0")
    # Sampling begins with the folder's schedule, as in PyTorch.
    config = dataclasses.replace(config, flow=dataclasses.replace(config.flow, shift=scheduler_shift(folder)))
    parameters = _denoiser(folder, config, variant)
    diverged = [name for name, value in parameters.items() if not bool(jnp.isfinite(value).all())]
    if diverged:
        raise WeightsError(f"{folder}: holds numbers that are not finite, in {listed(diverged, separator=', ')}")
    with new_folder(out) as new:
        run_dir = RunDir(new)
        _write_components(folder, run_dir, config, variant)
        write_denoiser(run_dir, config, step, parameters)


def _denoiser(folder: Path, config: DenoiserRun, variant: str | None) -> Parameters:
    found = read_transformer_config(folder)
    expected = prompted_config(config.model.mmdit)
    differences = [
        f"{field.name} is {getattr(found, field.name)}, must be {getattr(expected, field.name)}"
        for field in dataclasses.fields(expected)
        if field.name not in _FREE and getattr(found, field.name) != getattr(expected, field.name)
    ]
    if differences:
        raise WeightsError(f"{folder / 'transformer'}: not the transformer of this adapter: {'; '.join(differences)}")
    transformer = read_transformer(folder, dtype="float32", variant=variant)[1]
    adapter = read_adapter(folder, config.model, dtype="float32", variant=variant)
    return unite(register_parameters(config.model.mmdit, transformer), adapter)


def _write_components(folder: Path, run_dir: RunDir, config: DenoiserRun, variant: str | None) -> None:
    model = config.model
    found, autoencoder = read_autoencoder(folder, dtype="float32", variant=variant)
    if found != model.autoencoder:
        raise WeightsError(
            f"{folder / 'vae'}: not the autoencoder of this adapter: {found}, must be {model.autoencoder}"
        )
    save_weights(autoencoder, run_dir.autoencoder, "float32", found)
    for part, wanted, path in (
        ("identity_encoder", model.identity_encoder, run_dir.identity_encoder),
        ("expression_encoder", model.expression_encoder, run_dir.expression_encoder),
    ):
        if wanted:
            if not (folder / part).is_dir():
                raise WeightsError(f"{folder}: has no {part}/, which the model needs (ONNX encoders are not exported)")
            encoder, parameters, metadata = read_face_encoder(folder / part, variant=variant)
            save_weights(parameters, path, "float32", encoder, metadata)
    expressions = read_expressions(folder, variant)
    if expressions.prototypes is not None:
        # The weight file of the encoder was written above, so its checksum is another one.
        new_checksum = checksum(run_dir.expression_encoder)
        dataclasses.replace(expressions.prototypes, encoder_checksum=new_checksum).write(run_dir.word_prototypes)
    if expressions.prompts is not None:
        expressions.prompts.write(run_dir.prompts)
