"""`python -m genaffect_jax.export diffusers`: a trained model as a folder for diffusers, which needs no JAX.

    python -m genaffect_jax.export diffusers --model out/avatar_tiny --out DIR

The folder holds every part of the model, the method in four files of PyTorch, and evidence that both compute the same
(docs/guide/export.md).
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from safetensors.numpy import save_file

from genaffect_jax.checkpoints.components import network_file
from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.config import to_json
from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.export.checksums import require_replaceable, write_checksums
from genaffect_jax.export.evidence import CASES, Case, collect
from genaffect_jax.export.model_card import licence_of, model_card, unsupported_settings
from genaffect_jax.export.modelspec import modelspec
from genaffect_jax.export.trained import DTYPES, TrainedModel
from genaffect_jax.interop.diffusers.adapter import FOLDER as ADAPTER
from genaffect_jax.interop.diffusers.adapter import divide, write_adapter
from genaffect_jax.interop.diffusers.face_encoder import write_face_encoder
from genaffect_jax.interop.diffusers.folders import PIPELINE_FILE
from genaffect_jax.interop.diffusers.register_tokens import prompted_config, prompted_parameters
from genaffect_jax.interop.diffusers.weights import write_autoencoder, write_transformer
from genaffect_jax.interop.torch.expressions_folder import FOLDER as EXPRESSIONS
from genaffect_jax.interop.torch.expressions_folder import write_expressions
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.face_encoders.encoder import AvatarEncoder
from genaffect_jax.models.functional import Parameters

PIPELINE_CLASS = "GenAffectPipeline"
CODE = ("pipeline.py", "genaffect_modeling.py", "genaffect_faces.py", "genaffect_expressions.py")
"""Files of `interop.torch` that are copied: the method. `check.py` is copied beside them."""
_DIFFUSERS_VERSION = "0.42.1"  # that the files were made for and are tested with
_LIBRARY = "genaffect"  # the module name that pipeline.py gives its classes
_CLASSES = {
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    ADAPTER: (_LIBRARY, "GenAffectAdapter"),
    EXPRESSIONS: (_LIBRARY, "GenAffectExpressions"),
    "identity_encoder": (_LIBRARY, "GenAffectFaceEncoder"),
    "expression_encoder": (_LIBRARY, "GenAffectFaceEncoder"),
}


@dataclass(frozen=True)
class Arguments:
    """Write a trained model as a folder for diffusers."""

    model: Path
    """Run folder of a training."""
    out: Path
    """Folder to write."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Stored type of the weights. fp32 loses nothing; the others are half as large."""
    checkpoint: str = LATEST
    """Checkpoint to export: latest, best (by the loss on held-out people), or the number of a step."""
    overwrite: bool = False
    """Replace an earlier export in the folder."""


def run(arguments: Arguments, console: Console) -> bool:
    """Exports and prints what was written; raises as `export_diffusers`."""
    for line in export_diffusers(
        arguments.model, arguments.out, DTYPES[arguments.dtype], arguments.checkpoint, overwrite=arguments.overwrite
    ):
        console.print(line)
    if (dtype := DTYPES[arguments.dtype]) != "float32":
        console.print(f"load it with from_pretrained(..., dtype=torch.{dtype}); without, diffusers makes it float32")
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    console.print(f"{arguments.out}: {size / 1e6:.1f} MB; python {arguments.out / 'check.py'} compares it with PyTorch")
    return True


def export_diffusers(
    model: Path,
    out: Path,
    dtype: WeightDType = "float32",
    checkpoint: str = LATEST,
    *,
    overwrite: bool = False,
    cases: Sequence[Case] = CASES,
) -> list[str]:
    """Writes the folder; it appears whole.

    Args:
        model: run folder of a training; low-rank additions are merged into the kernels.
        out: the folder.
        dtype: stored type of all weights, rounded to nearest.
        checkpoint: see `TrainedModel.load`.
        overwrite: whether an earlier export in `out` may be replaced.
        cases: what the parity evidence holds.

    Returns:
        Remarks: what the folder does not hold.

    Raises:
        ConfigError: `out` is not empty and may not be replaced, or `model` is no run folder.
        CheckpointError, DataError, WeightsError: see `TrainedModel.load`; or a number is not finite in `dtype`.
    """
    require_replaceable(out, overwrite)
    trained = rounded(TrainedModel.load(model, checkpoint), dtype)
    remarks = unsupported_settings(trained.config.sampling, consistency=True)
    record, tensors = collect(trained, cases)
    with new_folder(out, replace=True) as new:
        components = write_components(trained, new, dtype)
        if trained.faces.expression is not None and "expression_encoder" not in components:
            remarks.append("not exported: the ONNX expression encoder; image files among expressions are refused there")
        _write_indices(new, components)
        package = importlib.resources.files("genaffect_jax")
        code, assets = package.joinpath("interop", "torch"), package.joinpath("assets")
        for source, name in (*((code, name) for name in (*CODE, "check.py")), (assets, "LICENSE")):
            (new / name).write_bytes(source.joinpath(name).read_bytes())
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, new / "parity.safetensors")
        (new / "parity.json").write_text(json.dumps(record, indent=2) + "\n")
        (new / "README.md").write_text(model_card(trained, dtype, record), encoding="utf-8")
        write_checksums(new)
    return remarks


def rounded(trained: TrainedModel, dtype: WeightDType) -> TrainedModel:
    """The model with parameters that are the stored ones, as float32.

    Raises:
        WeightsError: a number is not finite in `dtype`.
    """

    def stored(parameters: Parameters) -> Parameters:
        found = {name: jnp.asarray(value).astype(dtype).astype(jnp.float32) for name, value in parameters.items()}
        bad = [name for name, value in found.items() if not bool(jnp.isfinite(value).all())]
        if bad:
            raise WeightsError(f"not exported: numbers that are not finite as {dtype} in {listed(bad, separator=', ')}")
        return found

    def face(encoder: Any) -> Any:
        if not isinstance(encoder, AvatarEncoder):
            return encoder
        parts = {name: getattr(encoder, name) for name in ("name", "licence", "checksum", "config", "network")}
        return AvatarEncoder(**parts, parameters=stored(encoder.parameters))

    faces = dataclasses.replace(
        trained.faces, identity=face(trained.faces.identity), expression=face(trained.faces.expression)
    )
    return dataclasses.replace(
        trained, denoiser=stored(trained.denoiser), autoencoder=stored(trained.autoencoder), faces=faces
    )


def write_components(trained: TrainedModel, folder: Path, dtype: WeightDType) -> set[str]:
    """Writes the components of a model into an existing folder, without code and indices; returns their names.

    Raises:
        WeightsError: a number is not finite in `dtype`.
    """
    config = trained.config
    header = {
        "title": f"{trained.name}, step {trained.step}",
        "implementation": "diffusers",
        "author": "genaffect_jax",
        "license": licence_of(trained),
        "prediction_type": config.model.prediction,
    }
    transformer, adapter = divide(trained.denoiser)
    write_transformer(
        prompted_config(config.model.mmdit),
        prompted_parameters(config.model.mmdit, transformer),
        folder / "transformer",
        dtype=dtype,
        metadata=modelspec(config.model, **header),
    )
    run = {"name": trained.name, "step": trained.step, "config": json.loads(to_json(config))}
    write_adapter(
        config.model,
        adapter,
        folder / ADAPTER,
        run=run,
        dtype=dtype,
        metadata=modelspec(config.model, part="gen-affect-adapter", **header),
    )
    write_autoencoder(config.model.autoencoder, trained.autoencoder, folder / "vae", dtype=dtype)
    write_expressions(folder / EXPRESSIONS, config.text, trained.prompts, trained.prototypes)
    scheduler = {"_class_name": _CLASSES["scheduler"][1], "num_train_timesteps": 1000, "shift": config.flow.shift}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    components = {"transformer", ADAPTER, "vae", EXPRESSIONS, "scheduler"}
    run_dir, model = trained.run_dir, config.model
    for name, encoder, file, source in (
        ("identity_encoder", trained.faces.identity, run_dir.identity_encoder, model.identity_encoder),
        ("expression_encoder", trained.faces.expression, run_dir.expression_encoder, model.expression_encoder),
    ):
        if isinstance(encoder, AvatarEncoder):
            write_face_encoder(str(network_file(run_dir, file, source)), folder / name, dtype=dtype)
            components.add(name)
    return components


def _write_indices(folder: Path, components: set[str]) -> None:
    """The three files by which diffusers finds classes and components, plain and modular."""
    there = {name: list(found) if name in components else [None, None] for name, found in _CLASSES.items()}
    plain = {"_class_name": ["pipeline", PIPELINE_CLASS], "_diffusers_version": _DIFFUSERS_VERSION, **there}
    modular: dict[str, Any] = {"_class_name": "ModularPipeline", "_blocks_class_name": "GenAffectBlocks"}
    for name in sorted(components):
        source = {"pretrained_model_name_or_path": None, "subfolder": name, "type_hint": _CLASSES[name]}
        modular[name] = [*_CLASSES[name], {**source, "variant": None, "revision": None}]
    blocks = {
        "_class_name": "GenAffectBlocks",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "auto_map": {"ModularPipelineBlocks": "pipeline.GenAffectBlocks"},
    }
    for name, content in (
        (PIPELINE_FILE, plain),
        ("modular_model_index.json", modular),
        ("modular_config.json", blocks),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
