"""Time of one training step of a preset's denoiser or autoencoder on random input.

    python benchmarks/train_step.py --config configs/avatar_tiny.py
    python benchmarks/train_step.py --config configs/avatar_s.py --batch-size 256 --heads 4
    python benchmarks/train_step.py --config configs/autoencoder_s.py

Only the step is measured: no images are loaded, and the batch lies on the devices. Two times are printed. `queued` is
that of training, which does not wait for a step before it begins the next; `waited` waits for each. Compilation is
timed by itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import tyro

from genaffect_jax.cli import load_preset
from genaffect_jax.config import AutoencoderRun, DenoiserRun
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.xla import deterministic as compiled_as
from genaffect_jax.training.autoencoder.task import build_autoencoder, make_autoencoder_loss
from genaffect_jax.training.denoiser.batch import batch_shapes
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import create_state
from genaffect_jax.training.step import LossFunction, device_batch, make_train_step

_ROUNDS = 3


def main(
    config: Path = Path("configs/avatar_tiny.py"),
    steps: int = 20,
    batch_size: int | None = None,
    heads: int | None = None,
    scan_layers: bool | None = None,
    deterministic: bool = False,
) -> None:
    """Times the training step.

    Args:
        config: Preset of a denoiser or an autoencoder.
        steps: Queued steps of each of three rounds, and steps that are waited for.
        batch_size: Sets of a batch; the preset's when left out.
        heads: Attention heads of a denoiser without text, and so its width; the preset's when left out.
        scan_layers: Whether the blocks of a denoiser are a loop; the preset's when left out.
        deterministic: Compile as `train.deterministic` does.
    """
    run = _changed(load_preset(config, DenoiserRun, AutoencoderRun), batch_size, heads, scan_layers)
    with compiled_as(deterministic):
        network, loss, shapes = _parts(run)
        mesh, optimizer = make_mesh(run.mesh), make_optimizer(run.train)
        step = make_train_step(network, loss, optimizer, ema_decay=run.train.ema_decay, seed=0, mesh=mesh)
        batch = device_batch(_random(shapes), mesh)
        begun = time.perf_counter()
        state = jax.block_until_ready(create_state(network, optimizer, mesh, 0))
        created = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, {}, batch))
        compiled = time.perf_counter()
        for _ in range(3):
            state, metrics = step(state, {}, batch)
        jax.block_until_ready(metrics)
        queued = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            for _ in range(steps):
                state, metrics = step(state, {}, batch)
            jax.block_until_ready(metrics)
            queued.append((time.perf_counter() - start) / steps)
        waited = []
        for _ in range(steps):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, {}, batch))
            waited.append(time.perf_counter() - start)

    sets, images = run.train.batch_size, run.train.batch_size * run.data.expressions_per_set
    if isinstance(run, AutoencoderRun):
        images += sets  # it learns from references as from targets
    print(f"{config.stem} on {mesh.size} {jax.default_backend()} device(s): {network.size / 1e6:.2f} M parameters")
    print(f"state created in {created - begun:.1f} s, first step (compilation) {compiled - created:.1f} s")
    print(f"step of {sets} sets, {images} images; loss after {int(state.step)} steps {float(metrics['loss']):.4f}")
    for name, seconds in (("queued", queued), ("waited", waited)):
        typical = median(seconds)
        print(
            f"{name}: median {typical * 1e3:.2f} ms (from {min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f}), "
            f"{images / typical:.0f} images/s"
        )
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    print(f"most memory in use on one device: {'not known' if memory is None else f'{memory / 2**30:.1f} GiB'}")


def _parts(run: Any) -> tuple[Functional, LossFunction, dict[str, jax.ShapeDtypeStruct]]:
    """Network, loss and the shapes of a batch."""
    if isinstance(run, DenoiserRun):
        denoiser, autoencoder = build_networks(run.model, run.train.compute_dtype)
        return denoiser, make_denoiser_loss(run.flow, autoencoder), batch_shapes(run)
    side = (run.data.image_size, run.data.image_size, 3)
    shapes = {
        name: jax.ShapeDtypeStruct((run.train.batch_size, images, *side), np.uint8)
        for name, images in (("reference", 1), ("target", run.data.expressions_per_set))
    }
    return build_autoencoder(run), make_autoencoder_loss(run), shapes


def _random(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    makers: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "u": lambda shape: rng.integers(0, 256, shape, np.uint8),
        "i": lambda shape: np.zeros(shape, np.int32),
        "f": lambda shape: rng.standard_normal(shape, np.float32),
    }
    batch = {name: makers[x.dtype.kind](x.shape).astype(x.dtype) for name, x in shapes.items()}
    return {name: np.abs(x) if name == "expression" else x for name, x in batch.items()}


def _changed(run: Any, batch_size: int | None, heads: int | None, scan_layers: bool | None) -> Any:
    changes: dict[str, Any] = {"batch_size": run.train.batch_size if batch_size is None else batch_size}
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, **changes))
    if heads is None and scan_layers is None:
        return run
    if not isinstance(run, DenoiserRun):
        raise SystemExit("--heads and --scan-layers are for denoisers")
    mmdit = run.model.mmdit
    if heads is not None:
        width = heads * mmdit.attention_head_dim
        mmdit = dataclasses.replace(mmdit, num_attention_heads=heads, joint_attention_dim=width)
    if scan_layers is not None:
        mmdit = dataclasses.replace(mmdit, scan_layers=scan_layers)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, mmdit=mmdit))


if __name__ == "__main__":
    tyro.cli(main)
