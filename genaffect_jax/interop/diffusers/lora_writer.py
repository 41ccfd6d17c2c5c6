"""The low-rank additions of a denoiser, written as a LoRA file of PEFT and diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.lora import kernel_pieces
from genaffect_jax.interop.diffusers.lora_files import METADATA, TRANSFORMER
from genaffect_jax.io.atomic import new_file


def write_lora(
    path: Path,
    config: MMDiTConfig,
    factors: Mapping[str, tuple[jax.Array, jax.Array]],
    scale: float,
) -> None:
    """Writes additions `scale * A @ B`, atomically, as float32.

    The scale is multiplied into B. The header's configuration says `lora_alpha = r`, which is also what readers assume
    that do not read it, so all of them apply the same.

    Args:
        path: the file; an earlier one is replaced.
        config: the denoiser's transformer.
        factors: name of a transformer's kernel to its A [*layers, in, r] and B [*layers, r, out]; one rank for all.
        scale: factor of the products.

    Raises:
        WeightsError: names are no kernels of the transformer (all are listed), or a number is not finite.
    """
    pieces = {module: piece for module, piece in kernel_pieces(config).items() if piece.parameter in factors}
    unknown = sorted(factors.keys() - {piece.parameter for piece in pieces.values()})
    if unknown:
        raise WeightsError(f"{path}: not written: diffusers has no counterpart of {', '.join(unknown)}")
    tensors: dict[str, np.ndarray] = {}
    for module, piece in pieces.items():
        a, b = (np.asarray(x if piece.layer is None else x[piece.layer], np.float32) for x in factors[piece.parameter])
        down, up = piece.transform.to_theirs(a), np.float32(scale) * b.T
        if down.ndim == 4:  # a convolution's second factor is a 1x1 convolution
            up = up[:, :, None, None]
        for letter, value in (("A", down), ("B", up)):
            key = f"{TRANSFORMER}{module}.lora_{letter}.weight"
            if not np.isfinite(value).all():
                raise WeightsError(f"{path}: not written: {key} holds numbers that are not finite")
            tensors[key] = np.ascontiguousarray(value)
    rank = next(iter(factors.values()))[0].shape[-1]
    configuration = {"r": rank, "lora_alpha": rank, "target_modules": sorted(pieces)}
    metadata = {f"{TRANSFORMER}{name}": value for name, value in configuration.items()}
    with new_file(path, durable=True) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", METADATA: json.dumps(metadata, sort_keys=True)})
