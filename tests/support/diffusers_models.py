"""diffusers' networks of this package's configurations, with random weights; for tests that need PyTorch."""

from __future__ import annotations

import dataclasses

import diffusers
import torch

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig

SMALL = MMDiTConfig(
    sample_size=8,
    num_layers=4,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    in_channels=4,
    pos_embed_max_size=7,
    register_tokens=0,
)
TRANSFORMERS = {
    "sd3": dataclasses.replace(SMALL, qk_norm="none"),
    "sd35_large": SMALL,
    "sd35_medium": dataclasses.replace(SMALL, dual_attention_layers=(0, 1)),
    "dual_last": dataclasses.replace(SMALL, dual_attention_layers=(3,), num_attention_heads=3),
}
AUTOENCODERS = {
    "two_layers": AutoencoderConfig(
        block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4, latent_channels=5
    ),
    "one_layer": AutoencoderConfig(
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=16,
        latent_channels=5,
        scaling_factor=1.5,
        shift_factor=0.25,
    ),
}


def transformer(config: MMDiTConfig) -> diffusers.SD3Transformer2DModel:
    """With the weights that diffusers starts from."""
    names = {f.name for f in dataclasses.fields(config)} - {"register_tokens", "scan_layers", "remat"}
    fields = {name: getattr(config, name) for name in names}
    fields["qk_norm"] = None if config.qk_norm == "none" else config.qk_norm
    return diffusers.SD3Transformer2DModel(**fields).eval()


def autoencoder(config: AutoencoderConfig) -> diffusers.AutoencoderKL:
    """With the weights that diffusers starts from."""
    levels = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        **dataclasses.asdict(config),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Nothing stays at a zero or a one where a forgotten bias or norm would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                scales = "norm" in name and "linear" not in name and name.endswith("weight")
                parameter.copy_(float(scales) + 0.3 * noise)
    return model
