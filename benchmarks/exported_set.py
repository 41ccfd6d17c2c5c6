"""Time of one whole set, this package beside the exported pipeline: `python benchmarks/exported_set.py --help`.

Both sides are the calls that a user makes, with the same random bfloat16 weights' shapes and the same settings: one
reference image and expressions in, images on the host out. `--side jax` is `Pipeline`, `--side torch` the exported
`GenAffectPipeline` with its transformer and decoder compiled by `torch.compile`; its noise is given, as drawing it in
NumPy would be its slowest part on a GPU. One JSON line each; `seconds` is the median of `--repeats` sets after one that
compiles. Each side needs a process of its own; on a GPU give the torch side `JAX_PLATFORMS=cpu`.

`--shape sd35_medium` is SD3.5-medium at 512 px with 333 text tokens for every image; `avatar_s` is the network of
`configs/avatar_s.py` at 256 px, `avatar_tiny` that of `configs/avatar_tiny.py`.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import numpy as np
import tyro

from genaffect_jax.cli import load_preset
from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    MMDiTConfig,
    ModelConfig,
    TextConfig,
)
from genaffect_jax.data.prompts.table import PromptTable, all_prompts
from genaffect_jax.expressions.vocabulary import vocabulary

TEXT_TOKENS = 333
Shape = Literal["sd35_medium", "avatar_s", "avatar_tiny"]


def run_of(shape: Shape) -> DenoiserRun:
    """The run whose networks are measured."""
    if shape != "sd35_medium":
        return load_preset(Path(f"configs/{shape}.py"), DenoiserRun)
    model = ModelConfig(
        mmdit=dataclasses.replace(MMDiTConfig.sd35_medium(), sample_size=64),
        autoencoder=AutoencoderConfig.sd3(),
        conditioning=ConditioningConfig(identity_layers=2, identity_tokens=64),
    )
    data, text = DataConfig(image_size=model.image_size), TextConfig(embeddings=Path("prompts.safetensors"))
    run = DenoiserRun(model=model, data=data, text=text)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, compute_dtype="bfloat16"))


def prompts_of(run: DenoiserRun) -> PromptTable | None:
    """Random embeddings of all prompts."""
    network, rng = run.model.mmdit, np.random.default_rng(0)
    if not network.reads_prompts:
        return None
    texts = all_prompts(run.text)
    tokens = rng.standard_normal((len(texts), TEXT_TOKENS, network.joint_attention_dim), np.float32)
    pooled = rng.standard_normal((len(texts), network.pooled_projection_dim), np.float32)
    half = jax.numpy.dtype("bfloat16")
    return PromptTable(texts, tokens.astype(half), pooled.astype(half), run.text.template, "random", 77)


def seconds_of(call: Any, repeats: int) -> tuple[list[float], Any]:
    """Seconds of every call after one that compiles, and what the last one returned."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        found = np.asarray(call())
        times.append(time.perf_counter() - start)
    return times[1:], found


def measure(call: Any, images: int, repeats: int) -> dict[str, Any]:
    """Seconds of whole sets; `call` returns uint8 images."""
    times, found = seconds_of(call, repeats)
    if len(found) != images or found.min() == found.max():
        raise SystemExit(f"{images} images asked for, {len(found)} made, values {found.min()} to {found.max()}")
    return {"seconds": median(times), "all_seconds": [round(t, 4) for t in times]}


def jax_call(run: DenoiserRun, text: str, reference: np.ndarray, settings: dict[str, Any]) -> Any:
    """One call of `Pipeline`."""
    from denoiser import random_parameters
    from jax.sharding import Mesh

    from genaffect_jax.checkpoints.components import FaceEncoders
    from genaffect_jax.data.photos.reader import PhotoReader
    from genaffect_jax.expressions.space import UnitSpace
    from genaffect_jax.inference.program import IMAGES
    from genaffect_jax.models.build import build_networks
    from genaffect_jax.models.face_encoders.encoder import load_conditioning_encoder
    from genaffect_jax.pipeline import Pipeline

    denoiser, autoencoder = build_networks(run.model, run.train.compute_dtype)
    identity = run.model.identity_encoder
    pipeline = Pipeline(
        run,
        denoiser.cast_kernels(random_parameters(denoiser)),
        random_parameters(autoencoder),
        "random",
        prompts_of(run),
        FaceEncoders(load_conditioning_encoder(identity, "identity") if identity else None, None),
        UnitSpace(),
        PhotoReader("none"),
        Mesh(np.array(jax.local_devices()[:1]), (IMAGES,)),
    )
    return lambda: pipeline(reference, text, **settings).images


def compile_torch(pipe: Any, mode: str) -> None:
    """Compiles transformer and decoder with torch.compile; `mode` eager changes nothing."""
    if mode != "eager":
        options = {} if mode == "default" else {"mode": mode}
        pipe.transformer.compile(fullgraph=True, dynamic=False, **options)
        pipe.vae.decoder.compile(fullgraph=True, dynamic=False, **options)


def torch_call(
    run: DenoiserRun, text: str, reference: np.ndarray, settings: dict[str, Any], device: str, mode: str
) -> Any:
    """One call of the exported pipeline."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from PIL import Image

    from genaffect_jax.interop.diffusers.adapter import adapter_values
    from genaffect_jax.interop.diffusers.configs import autoencoder_values, transformer_values
    from genaffect_jax.interop.diffusers.face_encoder import write_face_encoder
    from genaffect_jax.interop.diffusers.register_tokens import prompted_config
    from genaffect_jax.interop.torch.expressions_folder import write_expressions
    from genaffect_jax.interop.torch.genaffect_expressions import GenAffectExpressions
    from genaffect_jax.interop.torch.genaffect_faces import GenAffectFaceEncoder
    from genaffect_jax.interop.torch.genaffect_modeling import GenAffectAdapter
    from genaffect_jax.interop.torch.pipeline import GenAffectPipeline

    torch.manual_seed(0)
    dtype = torch.bfloat16 if run.train.compute_dtype == "bfloat16" else torch.float32
    with torch.device(device):
        parts = {
            "transformer": SD3Transformer2DModel(**transformer_values(prompted_config(run.model.mmdit))).to(dtype),
            "vae": AutoencoderKL(**autoencoder_values(run.model.autoencoder)).to(dtype),
            "adapter": GenAffectAdapter(**adapter_values(run.model)).to(dtype),
        }
    with tempfile.TemporaryDirectory() as folder:
        write_expressions(Path(folder) / "expressions", run.text, prompts_of(run), None)
        parts["expressions"] = GenAffectExpressions.from_pretrained(f"{folder}/expressions").to(device)
        if run.model.identity_encoder:
            write_face_encoder(run.model.identity_encoder, Path(folder) / "identity_encoder", dtype="float32")
            parts["identity_encoder"] = GenAffectFaceEncoder.from_pretrained(f"{folder}/identity_encoder").to(device)
    for part in parts.values():
        part.eval()
    pipe = GenAffectPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=run.flow.shift))
    compile_torch(pipe, mode)
    side, channels = run.model.mmdit.sample_size, run.model.mmdit.in_channels
    noise = torch.randn(text.count(",") + 1, channels, side, side, device=device)
    theirs = {
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
        "consistency": settings["consistency"],
        "anchors": settings["anchors"] or 0,
        "chunk": settings["chunk"],
    }
    image = Image.fromarray(reference)
    return lambda: pipe(image, text, latents=noise, output_type="np", **theirs).images


def main(
    side: Literal["jax", "torch"],
    shape: Shape = "sd35_medium",
    images: int = 8,
    steps: int = 28,
    guidance: float | None = 4.0,
    consistency: float = 0.0,
    device: str = "cuda",
    mode: str = "default",
    repeats: int = 3,
    layers: int = 0,
    scan: bool = True,
) -> None:
    """Measures one side.

    Args:
        side: which implementation.
        shape: which networks.
        images: images in the set, all in one chunk.
        steps: denoising steps.
        guidance: joint guidance scale; 1 is none.
        consistency: share of image tokens that 8 anchors (or all images of a smaller set) share.
        device: of the torch side.
        mode: of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune, or eager for none.
        repeats: sets that are timed.
        layers: use only this many blocks, for a try on a small machine; 0: all.
        scan: of the jax side: equal blocks as a loop, or unrolled.
    """
    run = run_of(shape)
    network = dataclasses.replace(run.model.mmdit, scan_layers=scan)
    if layers:
        dual = tuple(i for i in network.dual_attention_layers if i < layers)
        network = dataclasses.replace(network, num_layers=layers, dual_attention_layers=dual)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, mmdit=network))
    text = ", ".join(list(vocabulary())[:images])
    size = run.model.image_size
    reference = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    settings = {
        "steps": steps,
        "guidance": guidance,
        "consistency": consistency,
        "anchors": min(8, images) if consistency else None,
        "chunk": images,
    }
    if side == "jax":
        call, versions = jax_call(run, text, reference, settings), {"jax": jax.__version__}
    else:
        import torch

        call, versions = torch_call(run, text, reference, settings, device, mode), {"torch": torch.__version__}
    row: dict[str, Any] = {"side": side, "shape": shape, "images": images, "steps": steps, "guidance": guidance}
    row |= {"consistency": consistency, **({"mode": mode} if side == "torch" else {"scan": scan}), **versions}
    print(json.dumps({**row, **measure(call, images, repeats)}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
