"""diffusers' `config.json` of a transformer or an autoencoder, converted to this package's configurations and back.

A file is read as diffusers reads it: missing keys have the defaults of its constructor, and keys that begin with an
underscore do not describe the network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig, from_json
from genaffect_jax.errors import ConfigError, require

Values = dict[str, Any]

# Defaults of the constructors of diffusers.
_TRANSFORMER_DEFAULTS: Values = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": [],
    "qk_norm": None,
}
_AUTOENCODER_DEFAULTS: Values = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    # Pipelines read these two (when to tile, when to use float32); the network does not depend on them.
    "sample_size": 32,
    "force_upcast": True,
}
_NOT_OF_DIFFUSERS: Values = {"register_tokens": 0, "scan_layers": True, "remat": "none"}


def transformer_config(values: Mapping[str, Any]) -> MMDiTConfig:
    """The configuration of an SD3Transformer2DModel.

    Raises:
        ConfigError: a key is unknown, or `models.mmdit.model` does not implement a value.
    """
    full = with_defaults(values, _TRANSFORMER_DEFAULTS)
    full["qk_norm"] = "none" if full["qk_norm"] is None else full["qk_norm"]
    layers = full["dual_attention_layers"]
    full["dual_attention_layers"] = [] if layers is None else list(layers) if isinstance(layers, tuple) else layers
    full["out_channels"] = full["in_channels"] if full["out_channels"] is None else full["out_channels"]
    return from_json(MMDiTConfig, json.dumps({**full, **_NOT_OF_DIFFUSERS}))


def transformer_values(config: MMDiTConfig) -> Values:
    """The inverse of `transformer_config`, without the fields that diffusers does not have.

    Raises:
        ConfigError: the network is no SD3Transformer2DModel: it has register tokens or no pooled text embedding.
    """
    require(
        config.reads_prompts,
        "mmdit.register_tokens",
        config.register_tokens,
        "must be 0, diffusers has no such tokens",
    )
    require(
        config.pooled_projection_dim >= 1,
        "mmdit.pooled_projection_dim",
        config.pooled_projection_dim,
        "must be at least 1, diffusers needs a pooled text embedding",
    )
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_OF_DIFFUSERS}
    values["qk_norm"] = None if config.qk_norm == "none" else config.qk_norm
    return values


def autoencoder_config(values: Mapping[str, Any]) -> AutoencoderConfig:
    """The configuration of an AutoencoderKL.

    Raises:
        ConfigError: a key is unknown, or `models.autoencoder.model` does not implement a value.
    """
    full = with_defaults(values, _AUTOENCODER_DEFAULTS)
    full["shift_factor"] = 0.0 if full["shift_factor"] is None else full["shift_factor"]
    names = [f.name for f in dataclasses.fields(AutoencoderConfig)]
    config = from_json(AutoencoderConfig, json.dumps({name: full[name] for name in names}))
    for name, needed in _autoencoder_constants(config).items():
        if full[name] != needed:
            raise ConfigError(f"{name}={full[name]!r}: this autoencoder implements {needed!r} only")
    return config


def autoencoder_values(config: AutoencoderConfig) -> Values:
    """The inverse of `autoencoder_config`."""
    # The size from which diffusers decodes in tiles, if asked to; SD3 has 1024.
    return {**dataclasses.asdict(config), **_autoencoder_constants(config), "sample_size": 1024}


def _autoencoder_constants(config: AutoencoderConfig) -> Values:
    levels = len(config.block_out_channels)
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    }


def with_defaults(values: Mapping[str, Any], defaults: Values) -> Values:
    """The entries of a file, with defaults for those that it lacks.

    Raises:
        ConfigError: a key is unknown.
    """
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ConfigError(f"unknown keys {unknown} (known: {sorted(defaults)})")
    return {**defaults, **given}
