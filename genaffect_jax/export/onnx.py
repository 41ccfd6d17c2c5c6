"""`python -m genaffect_jax.export onnx`: a trained model as three ONNX graphs.

    python -m genaffect_jax.export onnx --model out/avatar_tiny --out DIR

`conditions.onnx` runs once per set, `denoiser.onnx` once per step, `decoder.onnx` once at the end. `onnx.json` says
what they take and give, and `sampler.py` samples with them, without JAX and PyTorch.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from genaffect_jax.checkpoints.manager import LATEST
from genaffect_jax.errors import ConfigError, install_command, require
from genaffect_jax.export.checksums import require_replaceable, write_checksums
from genaffect_jax.export.diffusers import rounded, write_components
from genaffect_jax.export.model_card import licence_of, unsupported_settings
from genaffect_jax.export.onnx_check import IMAGE_TOLERANCE, TOLERANCE, largest_differences, require_equal
from genaffect_jax.export.trained import TrainedModel
from genaffect_jax.interop.onnx.signatures import AXES, signatures
from genaffect_jax.interop.torch.expressions_folder import FOLDER as EXPRESSIONS
from genaffect_jax.io.atomic import new_folder

DESCRIPTION = "onnx.json"
FORMAT = "genaffect_jax ONNX graphs"
SAMPLER = "sampler.py"
OPSETS = range(18, 24)
"""Opsets that torch 2.13's exporter writes."""
EXTERNAL_ABOVE = 1_500_000_000
"""Size in bytes of a graph's weights from which they are stored beside it."""
_NEEDED = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime")
_LIMITS = (
    "float32",
    "the height and width of images and latents are fixed",
    "consistent attention, the anchors' cache and the block cache are not in the graphs",
    "guidance, the solver and intervals of scales are the caller's; sampler.py has guidance and Euler steps",
    "encoders of expressions in images and text encoders are not in the graphs",
    "one person per call of conditions.onnx; concatenate the results of several along their second axis",
)


@dataclass(frozen=True)
class Arguments:
    """Write a trained model as three ONNX graphs, checked with onnxruntime."""

    model: Path
    """Run folder of a training."""
    out: Path
    """Folder to write."""
    checkpoint: str = LATEST
    """Checkpoint to export: latest, best (by the loss on held-out people), or the number of a step."""
    opset: int = 20
    """Version of the ONNX operators, 18 to 23."""
    overwrite: bool = False
    """Replace an earlier export in the folder."""

    def __post_init__(self) -> None:
        _require_opset(self.opset)


def run(arguments: Arguments, console: Console) -> bool:
    """Exports, checks and prints what was measured; raises as `export_onnx`."""
    differences, remarks = export_onnx(
        arguments.model, arguments.out, arguments.checkpoint, opset=arguments.opset, overwrite=arguments.overwrite
    )
    for name, difference in differences.items():
        allowed = IMAGE_TOLERANCE if name == "images" else TOLERANCE
        console.print(f"{name:18} largest difference from the networks {difference:.1e}, allowed {allowed:.1e}")
    for remark in remarks:
        console.print(remark)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    console.print(f"{arguments.out}: {size / 1e6:.1f} MB, opset {arguments.opset}; described in {DESCRIPTION}")
    return True


def export_onnx(
    model: Path,
    out: Path,
    checkpoint: str = LATEST,
    *,
    opset: int = 20,
    overwrite: bool = False,
    external_above: int = EXTERNAL_ABOVE,
) -> tuple[dict[str, float], list[str]]:
    """Writes the folder; it appears whole, and only if the graphs compute what the networks compute.

    Args:
        model: run folder of a training; low-rank additions are merged into the kernels.
        out: the folder.
        checkpoint: see `TrainedModel.load`.
        opset: one of `OPSETS`.
        overwrite: whether an earlier export in `out` may be replaced.
        external_above: size in bytes of a graph's weights from which they are stored in `<graph>.onnx.data`.

    Returns:
        The largest differences between graphs and networks, see `onnx_check.largest_differences`; and remarks: which
        of the model's own settings `sampler.py` does not have.

    Raises:
        ConfigError: `out` is not empty and may not be replaced, `opset` is none of `OPSETS`, `model` is no run folder,
            or a library is not installed.
        CheckpointError, DataError, WeightsError: see `TrainedModel.load`; or a parameter is not finite, or a graph
            differs from the networks by more than `onnx_check.TOLERANCE`.
    """
    _require_opset(opset)
    require_replaceable(out, overwrite)
    _require_installed()
    from genaffect_jax.interop.torch.onnx_graphs import write_graphs

    trained = rounded(TrainedModel.load(model, checkpoint), "float32")
    described = signatures(trained.config.model)
    with new_folder(out, replace=True) as new:
        # Beside the folder: the components are as large as the graphs.
        with tempfile.TemporaryDirectory(dir=new.parent) as scratch:
            components = Path(scratch)
            write_components(trained, components, "float32")
            write_graphs(components, new, described, opset, external_above)
            shutil.move(components / EXPRESSIONS, new / EXPRESSIONS)
        differences = largest_differences(trained, new, described)
        require_equal(differences)
        description = _description(trained, opset, differences, new)
        (new / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        package = importlib.resources.files("genaffect_jax")
        for source in (package.joinpath("interop", "onnx", SAMPLER), package.joinpath("assets", "LICENSE")):
            (new / source.name).write_bytes(source.read_bytes())
        write_checksums(new)
    return differences, unsupported_settings(trained.config.sampling, consistency=False)


def _require_opset(opset: int) -> None:
    require(opset in OPSETS, "opset", opset, f"must be {OPSETS[0]} to {OPSETS[-1]}")


def _require_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"export onnx needs {', '.join(missing)}: {install_command('torch')}")


def _description(trained: TrainedModel, opset: int, differences: dict[str, float], folder: Path) -> dict[str, Any]:
    """The content of `onnx.json`; `folder` holds the graphs."""
    model = trained.config.model
    graphs: dict[str, Any] = {}
    for name, signature in signatures(model).items():
        file = f"{name}.onnx"
        beside = {"weights": f"{file}.data"} if (folder / f"{file}.data").exists() else {}
        graphs[name] = {"file": file, **beside, **signature.as_json()}
    return {
        "format": FORMAT,
        "model": f"{trained.name}, step {trained.step}",
        "licence": licence_of(trained),
        "opset": opset,
        "versions": {name: version(name) for name in ("genaffect_jax", *_NEEDED)},
        "axes": AXES,
        "graphs": graphs,
        "sampling": {
            "defaults": dataclasses.asdict(trained.config.sampling),
            "shift": trained.config.flow.shift,
            "sigmas": "shifted(linspace(shifted(1), shifted(0.001), steps)), then 0; "
            "shifted(s) = shift * s / (1 + (shift - 1) * s)",
            "step": "latents += (next_sigma - sigma) * velocity",
            "guidance": "v0 + g_id * (v_id - v0) + g_ex * (v_all - v_id): velocities of groups that drop both "
            "conditions, the expression, none; text of the first is the negative prompt",
        },
        "expressions": f"{EXPRESSIONS}/config.json: channels of the vectors, words and their vectors, prompts",
        "check": {"largest_differences": differences, "tolerance": TOLERANCE, "image_tolerance": IMAGE_TOLERANCE},
        "limits": [*_LIMITS, *unsupported_settings(trained.config.sampling, consistency=False)],
    }
