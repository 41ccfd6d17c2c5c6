"""Time and memory of one training step of the denoiser at full size: `python benchmarks/denoiser_training.py --help`.

What the training half of a PyTorch baseline does with diffusers, `torch.compile` and fused AdamW: SD3.5-medium without
condition branches, 333 text tokens, all parameters train, float32 parameters and moments, bfloat16 products. Here the
step is the project's own (`training.step.make_train_step`): it also averages the parameters, clips gradients by their
global norm and passes over steps that are not finite, which the baseline does not. Weights and batch are random.

Devices: all of the process, `--fsdp` of them share parameters, average and moments. `--trace DIR` profiles three steps.
One JSON line.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from denoiser import LATENT_PIXEL, MODELS, random_parameters

from genaffect_jax.config import FlowConfig, MeshConfig, TrainConfig
from genaffect_jax.diffusion import flow
from genaffect_jax.kernels.remat import Remat
from genaffect_jax.models.flops import forward_flops, training_flops
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import parameter_shardings
from genaffect_jax.parallel.xla import deterministic as compiled_as
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.profiler import STEPS as TRACED
from genaffect_jax.training.profiler import StepProfile
from genaffect_jax.training.state import create_state
from genaffect_jax.training.step import Batch, Terms, device_batch, make_train_step

# Targets of the calls in a compiled program.
CUDNN, CUDNN_BACKWARD = 'cudnn$fmhaSoftmax"', 'cudnn$fmhaSoftmaxBackward"'


def loss(denoiser: MMDiT, _frozen: Mapping[str, Any], batch: Batch, keys: jax.Array) -> Terms:
    """Rectified flow on `latents` [B, 1, h, w, c] with `text` [B, 1, T, C] and `pooled` [B, 1, P]."""
    latents = batch["latents"]
    sigma_key, noise_key = jax.random.split(keys[0])
    sigma = flow.sample_sigma(sigma_key, latents.shape[:2], FlowConfig(shift=3.0))
    noise = jax.random.normal(noise_key, latents.shape)
    conditions = denoiser.project_conditions(text=batch["text"], pooled=batch["pooled"])
    velocity = denoiser(flow.interpolate(latents, noise, sigma), sigma, conditions).prediction
    return {"loss": flow.flow_loss(velocity, flow.velocity_target(latents, noise))}


def main(
    model: str = "sd35_medium",
    pixels: int = 512,
    batch: int = 16,
    text_tokens: int = 333,
    remat: Remat = "named",
    scan: bool = True,
    fsdp: int = 1,
    repeats: int = 6,
    layers: int = 0,
    trace: Path | None = None,
    deterministic: bool = False,
) -> None:
    """Times training steps.

    Args:
        model: sd3_medium, sd35_medium or sd35_large.
        pixels: side of the images.
        batch: images of one step over all devices.
        text_tokens: text tokens of each image.
        remat: what the backward pass computes again.
        scan: equal blocks as a loop, or unrolled.
        fsdp: devices that share the state; the others have copies.
        repeats: timed runs of three steps.
        layers: only this many blocks, for a try on a small machine; 0: all.
        trace: folder for a profile of three steps, after those that are timed.
        deterministic: compile as `train.deterministic` does.
    """
    config = dataclasses.replace(MODELS[model](), sample_size=pixels // LATENT_PIXEL, scan_layers=scan, remat=remat)
    if layers:
        dual = tuple(i for i in config.dual_attention_layers if i < layers)
        config = dataclasses.replace(config, num_layers=layers, dual_attention_layers=dual)
    network = Functional(lambda rngs: MMDiT(config, branches=None, rngs=rngs, dtype=jnp.bfloat16))
    mesh, optimizer = make_mesh(MeshConfig(fsdp=fsdp)), make_optimizer(TrainConfig(learning_rate=1e-5, steps=1000))
    shardings = parameter_shardings(network.logical_axes, network.shapes, mesh)
    given = {n: jax.device_put(x.astype(jnp.float32), shardings[n]) for n, x in random_parameters(network).items()}
    with compiled_as(deterministic):
        state = create_state(network, optimizer, mesh, 0, given)
        step = make_train_step(network, loss, optimizer, ema_decay=0.999, seed=0, mesh=mesh)
    rng, side = np.random.default_rng(0), config.sample_size
    shapes = {
        "latents": (batch, 1, side, side, config.in_channels),
        "text": (batch, 1, text_tokens, config.joint_attention_dim),
        "pooled": (batch, 1, config.pooled_projection_dim),
    }
    share = {name: (shape[0] // jax.process_count(), *shape[1:]) for name, shape in shapes.items()}
    numbers = device_batch({name: rng.standard_normal(shape, np.float32) for name, shape in share.items()}, mesh)
    start = time.perf_counter()
    with compiled_as(deterministic):
        compiled = step.lower(state, {}, numbers).compile()  # type: ignore[attr-defined]
    compilation = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    values: list[Any] = []

    def run(steps: int) -> float:
        """Milliseconds a step; steps are queued, as the training loop does it."""
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, {}, numbers)
        values.append(jax.device_get(metrics))
        return (time.perf_counter() - start) * 1e3 / steps

    run(2)
    spent = median(run(3) for _ in range(repeats))
    if trace is not None:
        profile = StepProfile(trace, 1)
        for number in range(1, TRACED + 1):
            profile.before(number, state)
            state, metrics = compiled(state, {}, numbers)
            profile.after(number, metrics)
    if any(value["skipped"] for value in values):
        raise SystemExit(f"steps were skipped: {values}")
    flops = training_flops(forward_flops(config, batch, side, text_tokens))
    stats = jax.local_devices()[0].memory_stats() or {}
    kinds = ("argument", "output", "alias", "temp")
    gib = {kind: round(getattr(memory, f"{kind}_size_in_bytes") / 2**30, 2) for kind in kinds}
    row = {
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "fsdp": fsdp,
        "jax": jax.__version__,
        "model": model,
        "layers": config.num_layers,
        "pixels": pixels,
        "batch": batch,
        "remat": remat,
        "scan": scan,
        "deterministic": deterministic,
        "milliseconds": round(spent, 1),
        "tflops_a_device": round(flops / mesh.size / spent / 1e9, 1),
        "compile_seconds": round(compilation, 1),
        **{f"{name}_gib": value for name, value in gib.items()},
        "program_gib": round(gib["argument"] + gib["output"] - gib["alias"] + gib["temp"], 2),
        "peak_gib": round(stats["peak_bytes_in_use"] / 2**30, 2) if stats else None,
        "attention_forward": text.count(CUDNN),
        "attention_backward": text.count(CUDNN_BACKWARD),
        "losses": [round(float(value["loss"]), 4) for value in values[:3]],
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
