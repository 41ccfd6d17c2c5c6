"""Configurations inferred from the tensors of a checkpoint in the original layout, which has no `config.json`.

Some fields leave no trace in the tensors. Of the transformer these are `sample_size`, which is set to 128 (SD3's; less
if the position table is smaller), and `attention_head_dim` without normalised queries, which is set to 64. Of the
autoencoder these are `norm_num_groups`, `scaling_factor` and `shift_factor`, which are set to those of SD3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.errors import ConfigError, WeightsError

Shape = tuple[int, ...]
HEAD_DIM = 64
"""Width of an attention head in the SD3 family."""
SAMPLE_SIZE = 128
"""Side of the latents of the SD3 family's 1024-px images."""
_BLOCK = re.compile(r"joint_blocks\.(\d+)\..*")
_DUAL = re.compile(r"joint_blocks\.(\d+)\.x_block\.attn2\..*")
_LEVEL = re.compile(r"encoder\.down\.(\d+)\..*")
_RESNET = re.compile(r"encoder\.down\.0\.block\.(\d+)\..*")


def infer_transformer(shapes: Mapping[str, Shape]) -> MMDiTConfig:
    """The configuration of a transformer.

    Args:
        shapes: key in the original layout, without prefix, to shape.

    Raises:
        WeightsError: a key that decides a field is missing or has another number of axes, or the fields do not go
            together.
    """
    width, channels, patch, _ = _needed(shapes, "x_embedder.proj.weight", 4)
    _, positions, _ = _needed(shapes, "pos_embed", 3)
    _, text_width = _needed(shapes, "context_embedder.weight", 2)
    _, pooled_width = _needed(shapes, "y_embedder.mlp.0.weight", 2)
    norms = [shape for key, shape in shapes.items() if key.endswith(".x_block.attn.ln_q.weight")]
    head_dim = norms[0][0] if norms and norms[0] else HEAD_DIM
    if width % head_dim:
        raise WeightsError(f"x_embedder.proj.weight: width {width} is no multiple of {head_dim}, the width of a head")
    side = math.isqrt(positions)
    try:
        return MMDiTConfig(
            sample_size=min(SAMPLE_SIZE, side * patch),
            patch_size=patch,
            in_channels=channels,
            num_layers=_count(shapes, _BLOCK, "joint_blocks"),
            attention_head_dim=head_dim,
            num_attention_heads=width // head_dim,
            joint_attention_dim=text_width,
            pooled_projection_dim=pooled_width,
            pos_embed_max_size=side,
            dual_attention_layers=tuple(sorted(_numbers(shapes, _DUAL))),
            qk_norm="rms_norm" if norms else "none",
            register_tokens=0,
        )
    except ConfigError as e:
        raise WeightsError(f"no transformer of the SD3 family: {e}") from e


def infer_autoencoder(shapes: Mapping[str, Shape]) -> AutoencoderConfig:
    """The configuration of an autoencoder; arguments and errors as in `infer_transformer`."""
    levels = _count(shapes, _LEVEL, "encoder.down")
    sd3 = AutoencoderConfig.sd3()
    try:
        return AutoencoderConfig(
            in_channels=_needed(shapes, "encoder.conv_in.weight", 4)[1],
            out_channels=_needed(shapes, "decoder.conv_out.weight", 4)[0],
            latent_channels=_needed(shapes, "decoder.conv_in.weight", 4)[1],
            block_out_channels=tuple(
                _needed(shapes, f"encoder.down.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)
            ),
            layers_per_block=_count(shapes, _RESNET, "encoder.down.0.block"),
            norm_num_groups=sd3.norm_num_groups,
            scaling_factor=sd3.scaling_factor,
            shift_factor=sd3.shift_factor,
        )
    except ConfigError as e:
        raise WeightsError(f"no autoencoder of the SD3 family: {e}") from e


def _needed(shapes: Mapping[str, Shape], key: str, axes: int) -> Shape:
    if key not in shapes:
        raise WeightsError(f"missing {key}")
    if len(shapes[key]) != axes:
        raise WeightsError(f"{key} has shape {shapes[key]}, must have {axes} axes")
    return shapes[key]


def _numbers(shapes: Mapping[str, Shape], pattern: re.Pattern[str]) -> set[int]:
    return {int(found[1]) for key in shapes if (found := pattern.fullmatch(key))}


def _count(shapes: Mapping[str, Shape], pattern: re.Pattern[str], name: str) -> int:
    numbers = _numbers(shapes, pattern)
    if not numbers:
        raise WeightsError(f"missing {name}.0 and what belongs to it")
    return max(numbers) + 1
