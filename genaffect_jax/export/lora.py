"""`python -m genaffect_jax.export lora`: the low-rank additions of a trained model as a file for other programs.

    python -m genaffect_jax.export lora --model W --out FILE.safetensors

The file has PEFT's and diffusers' keys (`transformer.transformer_blocks.0.attn.to_q.lora_A.weight`) and is added to the
model that the training began with. `sample --lora` reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genaffect_jax.errors import ConfigError
from genaffect_jax.export.trained import TrainedDenoiser
from genaffect_jax.interop.diffusers.lora_writer import write_lora
from genaffect_jax.models.lora import LORA_A, LORA_B, LoraNetwork
from genaffect_jax.models.parameter_names import MMDIT

_NAMED = 4


@dataclass(frozen=True)
class Arguments:
    """Write the low-rank additions of a trained model as a LoRA file for other programs."""

    model: Path
    """Run folder of a training with model.lora.rank of at least 1."""
    out: Path
    """File to write, .safetensors; it must not exist."""


def run(arguments: Arguments, console: Console) -> bool:
    """Writes the file and prints what it holds and what is lost; raises as `export_lora`."""
    trained = export_lora(arguments.model, arguments.out)
    lora = trained.config.model.lora
    console.print(
        f"{arguments.out}: the low-rank additions of {arguments.model}, rank {lora.rank}, step {trained.step}"
    )
    console.print("not in the file: the identity and expression branches and projectors")
    if not trained.config.model.mmdit.reads_prompts:
        console.print("it fits this package and folders of export diffusers: others have no such transformer")
    return True


def export_lora(model: Path, out: Path) -> TrainedDenoiser:
    """Writes the additions of the newest checkpoint's averages as one file, atomically.

    The scale alpha / rank is multiplied into the second factors (see `interop.diffusers.lora_writer`).

    Returns:
        What was written, and what was left out.

    Raises:
        ConfigError: `out` exists or is no .safetensors file; `model` is no run folder or has no low-rank additions; the
            additions are to parts that the SD3 transformer does not have; or the training changed more of the
            transformer than additions.
        CheckpointError: there is no complete checkpoint, or it does not fit its configuration.
        WeightsError: a number is not finite.
    """
    if out.suffix != ".safetensors":
        raise ConfigError("must end in .safetensors", field="out", found=out)
    if out.exists():
        raise ConfigError("exists; name a new file", field="out", found=out)
    trained = TrainedDenoiser(model)
    network, lora = trained.network, trained.config.model.lora
    if not isinstance(network, LoraNetwork):
        raise ConfigError("has no low-rank additions (model.lora.rank=0)", field="model", found=model)
    foreign = sorted(set(network.targets) - trained.transformer_names)
    if foreign:
        raise ConfigError(
            f"has additions to parts that the SD3 transformer does not have: {', '.join(foreign)}; merge keeps them",
            field="model",
            found=model,
        )
    if trained.trained_transformer_names:
        names = trained.trained_transformer_names
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        raise ConfigError(
            f"has trained more of the transformer than additions ({shown}), which a LoRA file cannot hold; single-file "
            "or merge keep it",
            field="model",
            found=model,
        )
    factors = {
        name.removeprefix(MMDIT): (trained.parameters[f"{name}.{LORA_A}"], trained.parameters[f"{name}.{LORA_B}"])
        for name in network.targets
    }
    write_lora(out, trained.config.model.mmdit, factors, lora.alpha / lora.rank)
    return trained
