"""`python -m genaffect_jax.export single-file`: a trained model as one SD3 checkpoint, for ComfyUI and others.

    python -m genaffect_jax.export single-file --model W --out FILE.safetensors --dtype bf16

The file holds the transformer, with low-rank additions in its kernels, and the autoencoder, in the original layout. The
identity and expression branches have no place there: the model in the file reads prompts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from genaffect_jax.checkpoints.components import read_autoencoder
from genaffect_jax.config import ModelConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.export.modelspec import SPEC, modelspec
from genaffect_jax.export.trained import DTYPES, TrainedDenoiser
from genaffect_jax.interop.diffusers.single_file_writer import write_single_file
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.build import build_networks
from genaffect_jax.version import __version__

_COMFY_HEAD_DIM = 64
# The code whose variable names are the keys.
_IMPLEMENTATION = "https://github.com/Stability-AI/sd3.5"


@dataclass(frozen=True)
class Arguments:
    """Write a trained model as one SD3 checkpoint in the original layout, without its condition branches."""

    model: Path
    """Run folder of a training of a model that reads prompts."""
    out: Path
    """File to write, .safetensors."""
    dtype: Literal["bf16", "fp16", "fp32"] = "fp32"
    """Type of the numbers; weights are rounded to nearest."""
    title: str = ""
    """Title in the file's header. Default: the name of the run folder and the step."""
    license: str = ""
    """Licence of the weights, for the file's header; that of the released model binds you. Default: no entry."""
    overwrite: bool = False
    """Replace an existing file."""


def run(arguments: Arguments, console: Console) -> bool:
    """Writes the file and prints what it holds and what is lost; raises as `export_single_file`."""
    trained = export_single_file(
        arguments.model,
        arguments.out,
        DTYPES[arguments.dtype],
        title=arguments.title,
        license=arguments.license,
        overwrite=arguments.overwrite,
    )
    console.print(f"{arguments.out}: transformer and autoencoder of {arguments.model}, step {trained.step}")
    console.print("not in the file: the identity and expression branches and projectors; it reads prompts alone")
    if not trained.trained_transformer_names and not trained.network.lora_params:
        console.print("the training changed nothing else: the transformer is the one that it began with")
    mmdit = trained.config.model.mmdit
    if mmdit.attention_head_dim != _COMFY_HEAD_DIM or mmdit.num_layers != mmdit.num_attention_heads:
        # `comfy.model_detection.detect_unet_config` takes width / 64 for both numbers, as all released models have it.
        console.print(
            f"ComfyUI cannot load it: it takes width / {_COMFY_HEAD_DIM} as the number of blocks and of heads, here "
            f"{mmdit.width} / {_COMFY_HEAD_DIM} for {mmdit.num_layers} blocks and {mmdit.num_attention_heads} heads"
        )
    return True


def export_single_file(
    model: Path, out: Path, dtype: WeightDType, *, title: str = "", license: str = "", overwrite: bool = False
) -> TrainedDenoiser:
    """Writes the newest checkpoint's averages as one file, atomically.

    Args:
        model: the run folder.
        out: the file.
        dtype: type of the numbers.
        title, license: entries of the header; empty for the folder's name with the step, and for none.
        overwrite: replace an existing file.

    Returns:
        What was written, and what was left out.

    Raises:
        ConfigError: `out` exists or is no .safetensors file, `model` is no run folder, or other programs have no such
            network: it has register tokens, no pooled text embedding, or predicts clean latents.
        CheckpointError: there is no complete checkpoint, or it does not fit its configuration.
        WeightsError: the autoencoder is missing, damaged or not scaled as that of SD3, or a number is not finite in
            this type.
    """
    if out.suffix != ".safetensors":
        raise ConfigError("must end in .safetensors", field="out", found=out)
    if out.exists() and not overwrite:
        raise ConfigError("exists; name a new file, or set overwrite", field="out", found=out)
    trained = TrainedDenoiser(model)
    config = trained.config.model
    _require_sd3(config, model)
    autoencoder = read_autoencoder(trained.run_dir, build_networks(config)[1], config.autoencoder)
    metadata = modelspec(
        config,
        title=title or f"{trained.run_dir.path.resolve().name}, step {trained.step}",
        implementation=_IMPLEMENTATION,
        description=f"Written by genaffect-jax {__version__}, without its identity and expression branches.",
        license=license,
    )
    write_single_file(
        out,
        (config.mmdit, trained.transformer),
        (config.autoencoder, autoencoder),
        dtype=dtype,
        metadata=metadata,
        hash_entry=f"{SPEC}hash_sha256",
    )
    return trained


def _require_sd3(config: ModelConfig, model: Path) -> None:
    reasons = []
    if not config.mmdit.reads_prompts:
        reasons.append(
            f"has register tokens in place of a text stream (register_tokens={config.mmdit.register_tokens})"
        )
    if not config.mmdit.pooled_projection_dim:
        reasons.append("takes no pooled text embedding (pooled_projection_dim=0)")
    if config.prediction != "velocity":
        reasons.append(f"predicts clean latents (prediction={config.prediction})")
    if reasons:
        raise ConfigError(
            f"other programs have no such network: it {', and '.join(reasons)}", field="model", found=model
        )
