"""Conversion tables: names of this package and the keys of diffusers' SD3Transformer2DModel and AutoencoderKL."""

from __future__ import annotations

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.interop.diffusers.rules import POSITIONS, Rule, conv, linear, norm, patch_linear

_MODEL_LINEAR = {
    "timestep_embedder.up": "time_text_embed.timestep_embedder.linear_1",
    "timestep_embedder.down": "time_text_embed.timestep_embedder.linear_2",
    "pooled_embedder.up": "time_text_embed.text_embedder.linear_1",
    "pooled_embedder.down": "time_text_embed.text_embedder.linear_2",
    "text_embed": "context_embedder",
    "out_modulation.linear": "norm_out.linear",
    "out": "proj_out",
}
_BLOCK_LINEAR = {
    "image_modulation.linear": "norm1.linear",
    "text_modulation.linear": "norm1_context.linear",
    "image_qkv.query": "attn.to_q",
    "image_qkv.key": "attn.to_k",
    "image_qkv.value": "attn.to_v",
    "text_qkv.query": "attn.add_q_proj",
    "text_qkv.key": "attn.add_k_proj",
    "text_qkv.value": "attn.add_v_proj",
    "image_out": "attn.to_out.0",
    "text_out": "attn.to_add_out",
    "image_attention.qkv.query": "attn2.to_q",
    "image_attention.qkv.key": "attn2.to_k",
    "image_attention.qkv.value": "attn2.to_v",
    "image_attention.out": "attn2.to_out.0",
    "image_mlp.up": "ff.net.0.proj",
    "image_mlp.down": "ff.net.2",
    "text_mlp.up": "ff_context.net.0.proj",
    "text_mlp.down": "ff_context.net.2",
}
_BLOCK_SCALES = {
    "image_qkv.query_norm": "attn.norm_q",
    "image_qkv.key_norm": "attn.norm_k",
    "text_qkv.query_norm": "attn.norm_added_q",
    "text_qkv.key_norm": "attn.norm_added_k",
    "image_attention.qkv.query_norm": "attn2.norm_q",
    "image_attention.qkv.key_norm": "attn2.norm_k",
}
_RESNET_NORMS = ("norm1", "norm2")
_RESNET_CONVS = ("conv1", "conv2")
_ATTENTION_LINEAR = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


def transformer_rules(config: MMDiTConfig) -> tuple[Rule, ...]:
    """The table of `models.mmdit.model.MMDiT` without condition branches."""
    rules = [
        Rule("patch_embed.kernel", "pos_embed.proj.weight", patch_linear(config.patch_size)),
        Rule("patch_embed.bias", "pos_embed.proj.bias"),
        Rule("position_table", "pos_embed.pos_embed", POSITIONS),
    ]
    for ours, theirs in _MODEL_LINEAR.items():
        rules += linear(ours, theirs)
    for ours, theirs in _BLOCK_LINEAR.items():
        rules += linear(f"blocks.{{i}}.{ours}", f"transformer_blocks.{{i}}.{theirs}")
    for ours, theirs in _BLOCK_SCALES.items():
        rules.append(Rule(f"blocks.{{i}}.{ours}.scale", f"transformer_blocks.{{i}}.{theirs}.weight"))
    return tuple(rules)


def autoencoder_rules(config: AutoencoderConfig) -> tuple[Rule, ...]:
    """The table of `models.autoencoder.model.AutoencoderKL`; it is the same for all sizes."""
    rules: list[Rule] = []
    for half, blocks, sampler in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        rules += conv(f"{half}.conv_in", f"{half}.conv_in")
        rules += norm(f"{half}.conv_norm_out", f"{half}.conv_norm_out")
        rules += conv(f"{half}.conv_out", f"{half}.conv_out")
        for block in (f"{half}.{blocks}.{{i}}", f"{half}.mid_block"):
            for part in _RESNET_NORMS:
                rules += norm(f"{block}.resnets.{{j}}.{part}", f"{block}.resnets.{{j}}.{part}")
            for part in _RESNET_CONVS:
                rules += conv(f"{block}.resnets.{{j}}.{part}", f"{block}.resnets.{{j}}.{part}")
        shortcut = f"{half}.{blocks}.{{i}}.resnets.{{j}}.conv_shortcut"  # where the width changes
        rules += conv(shortcut, shortcut)
        rules += conv(f"{half}.{blocks}.{{i}}.resampler.conv", f"{half}.{blocks}.{{i}}.{sampler}.0.conv")
        attention = f"{half}.mid_block.attentions.{{i}}"
        rules += norm(f"{attention}.group_norm", f"{attention}.group_norm")
        for ours, theirs in _ATTENTION_LINEAR.items():
            rules += linear(f"{attention}.{ours}", f"{attention}.{theirs}")
    return tuple(rules)
