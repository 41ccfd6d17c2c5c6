"""Time of one training step of a preset's denoiser on random latents: `python benchmarks/train_step.py --help`.

Only the step is measured: no images are loaded. Compilation is timed by itself.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import jax
import numpy as np
import tyro

from genaffect_jax.cli import load_preset
from genaffect_jax.config import DenoiserRun
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import create_state
from genaffect_jax.training.step import device_batch, make_train_step


def main(config: Path = Path("configs/avatar_tiny.py"), steps: int = 20) -> None:
    """Times the training step.

    Args:
        config: preset of a denoiser.
        steps: timed steps, after the one that compiles.
    """
    run = load_preset(config, DenoiserRun)
    denoiser, autoencoder = build_networks(run.model, run.train.compute_dtype)
    mesh, optimizer = make_mesh(run.mesh), make_optimizer(run.train)
    step = make_train_step(
        denoiser,
        make_denoiser_loss(run.flow, autoencoder),
        optimizer,
        ema_decay=run.train.ema_decay,
        seed=0,
        mesh=mesh,
    )
    side, channels = run.model.mmdit.sample_size, run.model.mmdit.in_channels
    groups, expressions = run.train.batch_size, run.data.expressions_per_set
    rng = np.random.default_rng(0)
    batch = device_batch(
        {
            "reference": rng.standard_normal((groups, 1, side, side, channels), np.float32),
            "target": rng.standard_normal((groups, expressions, side, side, channels), np.float32),
            "expression": rng.random((groups, expressions, run.model.conditioning.expression_width), np.float32),
        },
        mesh,
    )
    start = time.perf_counter()
    state = jax.block_until_ready(create_state(denoiser, optimizer, mesh, 0))
    created = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, {}, batch))
    compiled = time.perf_counter()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, {}, batch))
        seconds.append(time.perf_counter() - begin)
    typical = median(seconds)
    print(f"{config.stem} on {mesh.size} {jax.default_backend()} device(s): {denoiser.size / 1e6:.2f} M parameters")
    print(f"state created in {created - start:.1f} s, first step (compilation) {compiled - created:.1f} s")
    print(
        f"step of {groups} sets x {expressions} images: median {typical * 1e3:.0f} ms "
        f"(from {min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}), {groups * expressions / typical:.0f} images/s"
    )


if __name__ == "__main__":
    tyro.cli(main)
