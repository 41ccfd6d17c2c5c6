"""`python -m genaffect_jax.prepare arcface`: convert ArcFace weights to an identity encoder of this package.

python -m genaffect_jax.prepare arcface --weights w600k_r50.onnx --licence "..." --out arcface_r50.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genaffect_jax.config.encoders import ARCFACE_CROP, require_crop
from genaffect_jax.interop.arcface.weights import convert_arcface
from genaffect_jax.io.weight_file import WeightDType


@dataclass(frozen=True)
class Arguments:
    """Convert ArcFace weights to an identity encoder of this package."""

    weights: Path
    """IResNet weights: .onnx or .safetensors."""
    licence: str
    """Licence of the weights, written into the file and into every report made with it."""
    out: Path
    """The .safetensors file to write."""
    name: str | None = None
    """Name of the encoder. Default: the weights' file name without suffix."""
    crop: tuple[float, float, float] = ARCFACE_CROP
    """Part of an image that the network reads: left edge, top edge and side, as shares of the image's side. The default
    fits images written by python -m genaffect_jax.prepare photos; 0 0 1 is the whole image."""
    dtype: WeightDType = "float32"
    """Type the numbers are stored in."""

    def __post_init__(self) -> None:
        require_crop(self.crop, "crop")


def run(arguments: Arguments, console: Console) -> bool:
    """Converts the weights and reports the network.

    Raises:
        ConfigError, WeightsError: see `interop.arcface.weights.convert_arcface`.
    """
    name = arguments.weights.stem if arguments.name is None else arguments.name
    config = convert_arcface(
        arguments.weights,
        arguments.out,
        name=name,
        licence=arguments.licence,
        crop=arguments.crop,
        dtype=arguments.dtype,
    )
    console.print(
        f"{arguments.out}: {name}, IResNet of {sum(config.depths)} blocks, {config.width} numbers", markup=False
    )
    return True
