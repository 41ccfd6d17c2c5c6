"""LoRA files of other programs, added to the kernels of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.components import TRANSFORMER
from genaffect_jax.interop.diffusers.lora_files import KOHYA, Factors, config_file, peft_name, read_factors
from genaffect_jax.interop.diffusers.original_layout import TRANSFORMER_LAYOUT, Original
from genaffect_jax.interop.diffusers.rules import Piece, match
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.functional import Parameters
from genaffect_jax.models.parameter_names import MMDIT

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Addition:
    """What one pair of factors adds to one kernel."""

    piece: Piece
    """The kernel's tensor in diffusers, and its place among the transformer's parameters."""
    a: np.ndarray
    """[in, rank], float32."""
    b: np.ndarray
    """[rank, out], float32; scaled."""

    @property
    def parameter(self) -> str:
        """Name of the denoiser's parameter that is changed."""
        return f"{MMDIT}{self.piece.parameter}"

    def add_to(self, buffer: np.ndarray) -> bool:
        """Adds the product in place to an array of the parameter's shape; returns whether it is not zero."""
        product = self.a @ self.b
        target = buffer if self.piece.layer is None else buffer[self.piece.layer]
        target += product
        return bool(product.any())


@dataclass(frozen=True)
class LoraFile:
    """One LoRA file, read for a denoiser.

    Attributes:
        path: the file.
        weight: the factor of all its additions.
        name: file name, weight and checksum (with that of PEFT's configuration, if it was read), for `set.json`.
        additions: what it adds; not empty.
    """

    path: Path
    weight: float
    name: str
    additions: tuple[Addition, ...]

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the denoiser's parameters that it changes."""
        return frozenset(addition.parameter for addition in self.additions)


def kernel_pieces(config: MMDiTConfig) -> dict[str, Piece]:
    """The tensors of diffusers that are kernels of the transformer, by module (the key without `.weight`).

    The kernels of a model with register tokens have the names that they have in its export (`register_tokens`).
    """
    kernels = {n: s.shape for n, s in TRANSFORMER.network(config).shapes.items() if n.endswith(".kernel")}
    pieces = match(TRANSFORMER.rules(config), kernels, None, TRANSFORMER.class_name)
    return {piece.key.removesuffix(_WEIGHT): piece for piece in pieces}


def read_lora(path: Path, weight: float, config: MMDiTConfig) -> LoraFile:
    """Reads a LoRA file for a denoiser.

    Args:
        path: the file; the formats are in `lora_files`.
        weight: factor of all its additions.
        config: the denoiser's transformer.

    Raises:
        ConfigError: the weight is zero or not finite.
        WeightsError: the file cannot be read (see `lora_files.read_factors`), or a key matches no kernel of the
            transformer, matches one that another key has matched, or has another shape than that kernel.
    """
    if not math.isfinite(weight) or weight == 0:
        raise ConfigError("must be finite and not zero: the file would change nothing", field="lora", found=weight)
    pieces = kernel_pieces(config)
    originals = TRANSFORMER_LAYOUT.tensors(config, {piece.key for piece in pieces.values()})
    kohya = {key.removesuffix(_WEIGHT).replace(".", "_"): original for key, original in originals.items()}
    additions: dict[str, tuple[str, Addition]] = {}
    for factors in read_factors(path):
        original = _original(factors, pieces, kohya, path)
        _require_shapes(factors, original, pieces, path)
        up = factors.up.reshape(len(factors.up), -1)
        for part in original.parts:
            if part in additions:
                raise WeightsError(f"{path}: {additions[part][0]} and {factors.up_key} change the same kernel")
            rows = original.to_diffusers(up[original.rows(part, len(up))])
            piece = pieces[part.removesuffix(_WEIGHT)]
            # The transform of a kernel, [out, in] or [out, channels, patch, patch], applies to [rank, ...] as well.
            a, b = piece.transform.to_ours(factors.down), np.float32(weight * factors.scale) * rows.T
            additions[part] = factors.up_key, Addition(piece, a, b)
    name = f"{path.name}:{weight:g} {checksum(path)[:12]}"
    if (beside := config_file(path)) is not None:
        name += f" {checksum(beside)[:12]}"
    return LoraFile(path, weight, name, tuple(addition for _, addition in additions.values()))


def add_loras(parameters: Parameters, files: Sequence[LoraFile]) -> Parameters:
    """The denoiser's parameters with all additions; those that no file changes stay the same arrays.

    Sums are float32. Parameters that are changed must be float32, as half precision would lose most of an addition.

    Raises:
        WeightsError: all products of a file are zero.
        ValueError: a parameter that is changed is not float32.
    """
    changing: set[int] = set()
    added = dict(parameters)
    for name in sorted(set().union(*(file.parameters for file in files))):
        parameter = parameters[name]
        if parameter.dtype != np.float32:
            raise ValueError(f"{name} is {parameter.dtype}, must be float32")
        buffer = np.zeros(parameter.shape, np.float32)
        for number, file in enumerate(files):
            for addition in file.additions:
                if addition.parameter == name and addition.add_to(buffer):
                    changing.add(number)
        added[name] = parameter + jax.device_put(buffer, parameter.sharding)
    idle = [str(file.path) for number, file in enumerate(files) if number not in changing]
    if idle:
        raise WeightsError(f"{', '.join(idle)}: changes nothing, all products are zero")
    return added


def _original(factors: Factors, pieces: dict[str, Piece], kohya: dict[str, Original], path: Path) -> Original:
    """The kernels that a module of the file stands for, as rows of one tensor."""
    if factors.module.startswith(KOHYA):
        name = factors.module.removeprefix(KOHYA)
        if name in kohya:
            return kohya[name]
    else:
        name = peft_name(factors.module)
        if name in pieces:
            return Original(pieces[name].key, (pieces[name].key,))
    raise WeightsError(f"{path}: {factors.down_key} matches nothing: this network has no layer {name}")


def _require_shapes(factors: Factors, original: Original, pieces: dict[str, Piece], path: Path) -> None:
    shapes = {part: pieces[part.removesuffix(_WEIGHT)].shape for part in original.parts}
    rows, *rest = original.shape(shapes)
    rank = len(factors.down)
    ones = (1,) * (len(rest) - 1)  # a convolution's second factor
    for key, found, needed in (
        (factors.down_key, factors.down.shape, (rank, *rest)),
        (factors.up_key, factors.up.shape, (rows, rank, *ones)),
    ):
        if found != needed:
            raise WeightsError(f"{path}: {key} has shape {found}, must be {needed}")
