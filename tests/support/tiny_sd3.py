"""A whole StableDiffusion3Pipeline of random parts, small enough to run in a test; needs diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

SHIFT = 3.0
T5_WIDTH = 40


def clip_tokenizer(folder: Path, merges: list[str], **special: str) -> CLIPTokenizer:
    """A byte-level tokenizer of single letters and a few merges, from files in the format of the CLIP release."""
    folder.mkdir(parents=True)
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(m.replace(" ", "") for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, **special)


def clip(tokenizer: CLIPTokenizer, width: int, activation: str, eos: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=width,
            hidden_act=activation,
            bos_token_id=0,
            eos_token_id=eos,
        )
    )


def t5_tokenizer() -> T5TokenizerFast:
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz,.", "▁a", "▁person", "▁of", "▁portrait", "ion", "ess"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -2.0 - 0.1 * i) for i, p in enumerate(pieces))]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Random numbers everywhere: no bias stays zero and no norm one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") and "linear" not in name else 0.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
            else:
                spread = 1.0 if "embedding" in name or "shared" in name else parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn_like(parameter))
    return model.eval()


def tiny_pipeline(folder: Path, t5: bool = True) -> diffusers.StableDiffusion3Pipeline:
    """Builds the pipeline and saves it to `folder`."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "raw" / "1", ["p o", "r t", "po rt"])
    # CLIP-G of SD3 fills up with "!", CLIP-L with the end token.
    tokenizer_2 = clip_tokenizer(folder / "raw" / "2", ["o n</w>", "p e"], pad_token="!")
    tokenizer_3 = t5_tokenizer()
    encoder_3 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_3),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=shake(
            diffusers.SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=16,
                pooled_projection_dim=28,
                pos_embed_max_size=8,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=shake(
            diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 16),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
                use_quant_conv=False,
                use_post_quant_conv=False,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                sample_size=16,
            )
        ),
        text_encoder=shake(clip(tokenizer, 12, "quick_gelu", eos=2)),
        tokenizer=tokenizer,
        text_encoder_2=shake(clip(tokenizer_2, 16, "gelu", eos=tokenizer_2.eos_token_id)),
        tokenizer_2=tokenizer_2,
        text_encoder_3=shake(encoder_3) if t5 else None,
        tokenizer_3=tokenizer_3 if t5 else None,
    )
    pipeline.save_pretrained(folder)
    return pipeline
