"""Checkpoints in the original layout, made from diffusers' models by hand; for tests that need PyTorch.

This is written out apart from the package's tables, so that a mistake in them shows.
"""

from __future__ import annotations

import diffusers
import torch

Tensors = dict[str, torch.Tensor]
TRANSFORMER_PREFIX, AUTOENCODER_PREFIX = "model.diffusion_model.", "first_stage_model."


def transformer(model: diffusers.SD3Transformer2DModel) -> Tensors:
    """The original tensors of a transformer, without prefix."""
    theirs = dict(model.state_dict())
    found: Tensors = {"pos_embed": theirs.pop("pos_embed.pos_embed")}

    def move(ours: str, *parts: str, swap: bool = False) -> None:
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" in theirs:
                value = torch.cat([theirs.pop(f"{part}.{kind}") for part in parts])
                if swap:
                    first, second = value.chunk(2)
                    value = torch.cat([second, first])
                found[f"{ours}.{kind}"] = value.contiguous()

    move("x_embedder.proj", "pos_embed.proj")
    for ours, part in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        move(f"{ours}.mlp.0", f"time_text_embed.{part}.linear_1")
        move(f"{ours}.mlp.2", f"time_text_embed.{part}.linear_2")
    move("context_embedder", "context_embedder")
    last = len(model.transformer_blocks) - 1
    for i in range(last + 1):
        ours, block = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        for attention in ("attn", "attn2"):
            x = f"{ours}.x_block.{attention}"
            move(f"{x}.qkv", *(f"{block}.{attention}.to_{letter}" for letter in "qkv"))
            move(f"{x}.ln_q", f"{block}.{attention}.norm_q")
            move(f"{x}.ln_k", f"{block}.{attention}.norm_k")
            move(f"{x}.proj", f"{block}.{attention}.to_out.0")
        context = f"{ours}.context_block"
        move(f"{context}.attn.qkv", *(f"{block}.attn.add_{letter}_proj" for letter in "qkv"))
        move(f"{context}.attn.ln_q", f"{block}.attn.norm_added_q")
        move(f"{context}.attn.ln_k", f"{block}.attn.norm_added_k")
        move(f"{context}.attn.proj", f"{block}.attn.to_add_out")
        move(f"{ours}.x_block.adaLN_modulation.1", f"{block}.norm1.linear")
        move(f"{context}.adaLN_modulation.1", f"{block}.norm1_context.linear", swap=i == last)
        for half, feed_forward in (("x_block", "ff"), ("context_block", "ff_context")):
            move(f"{ours}.{half}.mlp.fc1", f"{block}.{feed_forward}.net.0.proj")
            move(f"{ours}.{half}.mlp.fc2", f"{block}.{feed_forward}.net.2")
    move("final_layer.linear", "proj_out")
    move("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    assert not theirs, theirs.keys()
    return found


def autoencoder(model: diffusers.AutoencoderKL) -> Tensors:
    """The original tensors of an autoencoder, without prefix."""
    levels = len(model.config.block_out_channels)
    found: Tensors = {}
    for key, value in model.state_dict().items():
        half, *path, kind = key.split(".")
        match path:
            case ["conv_norm_out"]:
                path = ["norm_out"]
            case ["mid_block", "resnets", i, part]:
                path = ["mid", f"block_{int(i) + 1}", part]
            case ["mid_block", "attentions", "0", *part]:
                name = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[part[0]]
                path = ["mid", "attn_1", name]
                if value.ndim == 2:
                    value = value[:, :, None, None]
            case [("down_blocks" | "up_blocks") as blocks, level, *rest]:
                number = int(level) if blocks == "down_blocks" else levels - 1 - int(level)
                path = [blocks.removesuffix("_blocks"), str(number)]
                if rest[0] == "resnets":
                    path += ["block", rest[1], rest[2].replace("conv_shortcut", "nin_shortcut")]
                else:
                    path += [rest[0].removesuffix("rs"), "conv"]
        found[".".join((half, *path, kind))] = value.contiguous()
    return found


def checkpoint(
    model: diffusers.SD3Transformer2DModel, decoder: diffusers.AutoencoderKL | None = None, prefixes: bool = True
) -> Tensors:
    """The tensors of a one-file checkpoint."""
    prefix = TRANSFORMER_PREFIX if prefixes else ""
    tensors = {prefix + key: value for key, value in transformer(model).items()}
    if decoder is not None:
        tensors |= {AUTOENCODER_PREFIX + key: value for key, value in autoencoder(decoder).items()}
    return tensors
