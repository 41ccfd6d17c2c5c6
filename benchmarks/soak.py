"""Stops a small training at random moments, continues it each time, and compares it with one that nobody stopped.

    python benchmarks/soak.py                    20 stops by SIGTERM and SIGINT
    python benchmarks/soak.py --kill             20 stops by SIGKILL, which no process can answer

Parameters, averages, optimizer, input position and logged losses must be equal to the bit. Ends with status 0 if they
are, else 1. The trainings are real commands with a worker process each; the model is tiny, so that most of the time is
their starting.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    MeshConfig,
    MMDiTConfig,
    ModelConfig,
    TrainConfig,
    to_json,
)
from genaffect_jax.errors import COMPLETE, INTERRUPTED
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import TrainState, abstract_state

STEPS_A_STOP = 40
LONGEST_LEG = 30


def main(stops: int = 20, kill: bool = False, seed: int = 0, keep: Path | None = None) -> int:
    """Stops and compares.

    Args:
        stops: How often the training is stopped.
        kill: Stop with SIGKILL, in place of SIGTERM and SIGINT in turn at random.
        seed: Of the moments and signals.
        keep: Folder for the trainings, which stays; a temporary one if left out.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        config = tiny_config(folder, stops * STEPS_A_STOP)
        (folder / "preset.py").write_text(
            "from genaffect_jax.config import DenoiserRun, from_json\n\n\n"
            f"def config():\n    return from_json(DenoiserRun, {to_json(config)!r})\n"
        )
        began = time.perf_counter()
        status, _ = train(folder, "whole", None, None)
        print(f"not stopped: status {status}, {time.perf_counter() - began:.0f} s", flush=True)
        wrong = [] if status == COMPLETE else [f"the training that nobody stopped ended with status {status}"]
        wrong += stop_and_continue(folder, stops, kill, random.Random(seed))
        if not wrong:
            wrong = differences(config, folder / "whole", folder / "stopped", starts=stops + 1)
        print(f"{stops} stops, {config.train.steps} steps: {'; '.join(wrong) or 'equal to the bit'}")
    return 1 if wrong else 0


def tiny_config(folder: Path, steps: int) -> DenoiserRun:
    """A 32-px model of two narrow blocks; its autoencoder is random, in a file of the folder."""
    autoencoder = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 8, 16), norm_num_groups=4)
    model = ModelConfig(
        mmdit=MMDiTConfig(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=0,
            pos_embed_max_size=4,
            register_tokens=2,
        ),
        autoencoder=autoencoder,
        conditioning=ConditioningConfig(expression_tokens=2, identity_layers=1),
        autoencoder_weights=str(folder / "autoencoder.safetensors"),
    )
    _, network = build_networks(model)
    save_weights(network.init(jax.random.key(1)), folder / "autoencoder.safetensors", "float32", autoencoder)
    return DenoiserRun(
        data=DataConfig(image_size=32, identities=8, expressions_per_identity=4, expressions_per_set=2, workers=1),
        model=model,
        train=TrainConfig(steps=steps, batch_size=8, log_every=1, probe_every=0, checkpoint_every=10),
    )


def train(folder: Path, name: str, number: signal.Signals | None, at: int | None) -> tuple[int, str]:
    """Runs the training command; sends it a signal soon after it has logged step `at`.

    Returns:
        Its exit status and what it printed.
    """
    command = [sys.executable, "-m", "genaffect_jax.train"]
    command += ["--config", str(folder / "preset.py"), "--workdir", str(folder / name)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **cache}) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            logged = re.match(r"step (\d+)/", line)
            if number is not None and at is not None and logged and int(logged[1]) >= at:
                time.sleep(random.Random(at).random() * 0.1)
                process.send_signal(number)
                at = None
    return process.returncode, "".join(said)


def stop_and_continue(folder: Path, stops: int, kill: bool, chance: random.Random) -> list[str]:
    """Stops the training `stops` times and lets it end; returns what was not as it should be."""
    wrong, step = [], 0
    for stop in range(1, stops + 1):
        number = signal.SIGKILL if kill else chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
        began = time.perf_counter()
        # The first step of a process compiles and is not logged.
        status, said = train(folder, "stopped", number, step + 1 + chance.randint(1, LONGEST_LEG))
        before, step = step, Checkpoints(folder / "stopped").latest_step() or 0
        print(
            f"stop {stop}: {number.name}, status {status}, steps {before} to {step}, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
        if status != (-signal.SIGKILL if kill else INTERRUPTED):
            wrong.append(f"stop {stop}: status {status}: {said[-500:]}")
        if before and f"continuing at step {before} of" not in said:
            wrong.append(f"stop {stop}: did not continue at step {before}: {said[:500]}")
    status, said = train(folder, "stopped", None, None)
    print(f"last: status {status}, from step {step}", flush=True)
    return wrong if status == COMPLETE else [*wrong, f"last: status {status}: {said[-500:]}"]


def differences(config: DenoiserRun, whole: Path, stopped: Path, starts: int) -> list[str]:
    """What differs between two finished trainings."""
    (expected, position), (found, other) = (restore(config, workdir) for workdir in (whole, stopped))
    wrong = [] if position == other else [f"position {other}, expected {position}"]
    for field in ("step", "parameters", "ema", "optimizer"):
        pairs = zip(jax.tree.leaves(getattr(expected, field)), jax.tree.leaves(getattr(found, field)), strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            wrong.append(f"{field} differs")
    rows, stopped_rows = (losses(workdir) for workdir in (whole, stopped))
    wrong += [
        f"loss of step {step}: {loss}, expected {rows[step]}"
        for step, loss in stopped_rows.items()
        if step > 1 and loss != rows[step]
    ]
    if len(stopped_rows) < config.train.steps - starts:  # each process logs all steps but its first
        wrong.append(f"{len(stopped_rows)} steps logged, expected {config.train.steps - starts}")
    return wrong


def restore(config: DenoiserRun, workdir: Path) -> tuple[TrainState, object]:
    network, _ = build_networks(config.model)
    abstract = abstract_state(network, make_optimizer(config.train), make_mesh(MeshConfig()))
    return Checkpoints(workdir).restore(abstract)


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows), "a step stands twice in metrics.jsonl"
    return {row["step"]: row["loss"] for row in rows}


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
