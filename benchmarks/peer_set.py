"""Time of one whole set with diffusers and `torch.compile`: `python benchmarks/peer_set.py --help`.

What `benchmarks/sets.py --sizes 8 --references 1` draws, made of diffusers' SD3.5-medium transformer and AutoencoderKL
with random bfloat16 weights, both compiled: one reference image is encoded, 8 images are denoised in 28 Euler steps
with guidance (a batch of 16), decoded, and fetched to the host as bytes. Gen-AFFECT's attention goes in where diffusers
takes attention processors: the two decoupled branches project their 16 tokens in every block of every step, and
consistent attention is that of StoryDiffusion (arXiv 2405.01434), whose images each get a copy of the tokens that all
images of their guidance branch show, their own among them. The tokens shown are drawn anew in every step and layer.

It does less than `sets.py` in one place: identity and expression tokens are given instead of made from the reference's
latents and an expression vector (a few milliseconds). One JSON line; `--layers 2 --heads 2` is for a try on a CPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import tyro
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch.nn.functional import scaled_dot_product_attention

HEAD = 64
TEXT_TOKENS = 333
BRANCH_TOKENS = 16
SHIFT = 3.0
GUIDANCE = 4.0
# The autoencoder of SD3 and SD3.5.
AUTOENCODER = {
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


class SharedAttention(torch.nn.Module):
    """Joint attention of one block with two decoupled branches and the shown tokens of a whole guidance branch.

    Args:
        width: of the transformer.
        images: N, images of one guidance branch.
        shown: [S], image tokens that every image shows; changed in place between steps.
        tokens: identity and expression tokens, each [branches * N, 16, width].
    """

    def __init__(self, width: int, images: int, shown: torch.Tensor, tokens: list[torch.Tensor]) -> None:
        super().__init__()
        self.examples, self.shown, self.tokens = images, shown, tokens
        self.keys = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in tokens)
        self.values = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in tokens)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image tokens [B, L, D] and text tokens [B, T, D], as diffusers calls it."""
        assert encoder_hidden_states is not None
        length = hidden_states.shape[1]
        query = attn.norm_q(heads(attn.to_q(hidden_states)))
        key, value = attn.norm_k(heads(attn.to_k(hidden_states))), heads(attn.to_v(hidden_states))
        text_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
        text_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
        text_value = heads(attn.add_v_proj(encoder_hidden_states))
        out = joined(
            scaled_dot_product_attention(
                torch.cat([query, text_query], dim=2),
                torch.cat([key, text_key, self.of_all(key)], dim=2),
                torch.cat([value, text_value, self.of_all(value)], dim=2),
            )
        )
        image, text = out[:, :length], out[:, length:]
        for to_key, to_value, tokens in zip(self.keys, self.values, self.tokens, strict=True):
            branch = scaled_dot_product_attention(query, heads(to_key(tokens)), heads(to_value(tokens)))
            image = image + joined(branch)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)

    def of_all(self, x: torch.Tensor) -> torch.Tensor:
        """The shown tokens of all images of a guidance branch, copied for each of them: [B, heads, N * S, HEAD]."""
        apart = x[:, :, self.shown].unflatten(0, (-1, self.examples))
        pool = apart.transpose(1, 2).flatten(2, 3)
        return pool[:, None].expand(-1, self.examples, -1, -1, -1).flatten(0, 1)


def heads(x: torch.Tensor) -> torch.Tensor:
    """[B, tokens, D] as [B, heads, tokens, HEAD]."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def joined(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `heads`."""
    return x.transpose(1, 2).flatten(2)


def sigmas(steps: int) -> list[float]:
    """Noise levels from 1 to 0 under the resolution shift, as in `sets.py` up to the shift of the smallest level."""
    plain = (1 - i / steps for i in range(steps + 1))
    return [SHIFT * s / (1 + (SHIFT - 1) * s) for s in plain]


def main(
    pixels: int = 512,
    steps: int = 28,
    images: int = 8,
    consistency: float = 0.5,
    repeats: int = 3,
    compile_mode: str = "default",
    layers: int = 24,
    attention_heads: int = 24,
    autoencoder_channels: tuple[int, int, int, int] = (128, 256, 512, 512),
) -> None:
    """Times sets.

    Args:
        pixels: side of the images.
        steps: Euler steps.
        images: expressions in the set.
        consistency: share of its image tokens that every image shows the others.
        repeats: timed sets, after two that are not counted.
        compile_mode: mode of `torch.compile`, or `eager`: nothing is compiled.
        layers: blocks of the transformer.
        attention_heads: heads of every block.
        autoencoder_channels: channels of the autoencoder's resolutions.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    side, width, batch = pixels // 8, attention_heads * HEAD, 2 * images
    length = (side // 2) ** 2
    shown = torch.zeros(layers, round(consistency * length), dtype=torch.long, device=device)
    tokens = [normal(batch, BRANCH_TOKENS, width) for _ in range(2)]
    with device:
        transformer = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            num_layers=layers,
            attention_head_dim=HEAD,
            num_attention_heads=attention_heads,
            joint_attention_dim=4096,
            caption_projection_dim=width,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(min(13, layers))),
            qk_norm="rms_norm",
        )
        for layer, block in enumerate(transformer.transformer_blocks):
            block.attn.set_processor(SharedAttention(width, images, shown[layer], tokens))
        vae = AutoencoderKL(
            block_out_channels=autoencoder_channels,
            **AUTOENCODER,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    transformer = transformer.to(torch.bfloat16).eval()
    vae = vae.to(torch.bfloat16).eval().to(memory_format=torch.channels_last)
    denoiser, encoder, decoder = transformer, vae.encoder, vae.decoder
    if compile_mode != "eager":
        denoiser, encoder, decoder = (torch.compile(x, mode=compile_mode) for x in (transformer, encoder, decoder))
    text, pooled = normal(batch, TEXT_TOKENS, 4096), normal(batch, 2048)
    reference = torch.randint(0, 256, (1, 3, pixels, pixels), dtype=torch.uint8)
    levels = sigmas(steps)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def draw() -> tuple[tuple[float, float, float], torch.Tensor]:
        """Seconds of encoding, denoising and decoding, and the images on the host."""
        start = now()
        faces = reference.to(device).to(torch.bfloat16) / 127.5 - 1
        encoder(faces.to(memory_format=torch.channels_last)).chunk(2, dim=1)
        encoded = now()
        latents = normal(images, 16, side, side, dtype=torch.float32)
        for level, following in pairwise(levels):
            shown.copy_(torch.rand(layers, length, device=device).argsort(dim=1)[:, : shown.shape[1]])
            velocity = denoiser(
                hidden_states=latents.to(torch.bfloat16).repeat(2, 1, 1, 1),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=torch.full((batch,), 1000 * level, device=device),
                return_dict=False,
            )[0].float()
            without, given = velocity.chunk(2)
            latents = latents + (following - level) * (without + GUIDANCE * (given - without))
        denoised = now()
        scaled = (latents / AUTOENCODER["scaling_factor"] + AUTOENCODER["shift_factor"]).to(torch.bfloat16)
        drawn = decoder(scaled.to(memory_format=torch.channels_last)).float()
        # A number that is not finite would become some byte, so every image says by a flag that it has none.
        finite = torch.isfinite(drawn).all()
        bytes_ = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        end = now()
        if not bool(finite):
            raise SystemExit("the images are not finite")
        return (encoded - start, denoised - encoded, end - denoised), bytes_

    def timed(call: Callable[[], Any]) -> float:
        start = now()
        call()
        return now() - start

    first = [timed(draw) for _ in range(2)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    parts = [draw()[0] for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    row = {
        "peer": "diffusers",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "compile_mode": compile_mode,
        "layers": layers,
        "width": width,
        "images": images,
        "steps": steps,
        "pixels": pixels,
        "consistency": consistency,
        "seconds": round(median(map(sum, parts)), 3),
        "encoding_seconds": round(median(p[0] for p in parts), 3),
        "denoising_seconds": round(median(p[1] for p in parts), 3),
        "decoding_seconds": round(median(p[2] for p in parts), 3),
        "first_seconds": round(first[0], 1),
        "second_seconds": round(first[1], 2),
        "peak_gib": None if peak is None else round(peak, 2),
        "all_seconds": [round(sum(p), 3) for p in parts],
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
