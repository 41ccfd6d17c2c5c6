"""Stops a small training at random moments, continues it each time, and compares it with one that nobody stopped.

    python benchmarks/soak.py                    20 stops by SIGTERM and SIGINT
    python benchmarks/soak.py --kill             20 stops by SIGKILL, which no process can answer

On a GPU, with nothing kept of what the compiler has tried:

    python benchmarks/soak.py --stops 8 --attention --deterministic --fresh_cache

On two machines, the second with the file of the first:

    python benchmarks/soak.py --stops 1 --attention --deterministic --save one.json
    python benchmarks/soak.py --stops 1 --attention --deterministic --against one.json

Parameters, averages, optimizer, input position and logged losses must be equal to the bit. Ends with status 0 if they
are, else 1. The trainings are real commands with a worker process each; the model is tiny, so that most of the time is
their starting.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from typing import Any

import jax
import numpy as np
import tyro

from genaffect_jax.checkpoints.environment import differences as environment_differences
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
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
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import TrainState, abstract_state

STEPS_A_STOP = 40
LONGEST_LEG = 30


def main(
    stops: int = 20,
    kill: bool = False,
    seed: int = 0,
    keep: Path | None = None,
    attention: bool = False,
    deterministic: bool = False,
    fresh_cache: bool = False,
    save: Path | None = None,
    against: Path | None = None,
) -> int:
    """Stops and compares.

    Args:
        stops: How often the training is stopped.
        kill: Stop with SIGKILL, in place of SIGTERM and SIGINT in turn at random.
        seed: Of the moments and signals.
        keep: Folder for the trainings, which stays; a temporary one if left out.
        attention: A model in bfloat16 with heads of size 64 and 1026 tokens, whose attention runs in cuDNN on GPUs.
        deterministic: Train with train.deterministic.
        fresh_cache: Every start compiles anew, as on a new machine.
        save: File for the digest of the training that nobody stopped: its final state and all losses.
        against: Such a file, of another machine or another time, which this training must equal too.
    """
    # This process only compares: the trainings get the accelerator.
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        config = tiny_config(folder, stops * STEPS_A_STOP, attention, deterministic)
        (folder / "preset.py").write_text(
            "from genaffect_jax.config import DenoiserRun, from_json\n\n\n"
            f"def config():\n    return from_json(DenoiserRun, {to_json(config)!r})\n"
        )
        start = Start(folder, fresh_cache)
        began = time.perf_counter()
        status, said = start.train("whole", None, None)
        print(f"not stopped: status {status}, {time.perf_counter() - began:.0f} s", flush=True)
        wrong = [] if status == COMPLETE else [f"the training that nobody stopped ended with {status}: {said[-500:]}"]
        wrong = wrong or stop_and_continue(start, stops, kill, random.Random(seed))
        if not wrong:
            wrong = differences(config, folder / "whole", folder / "stopped", starts=stops + 1)
            found = digest(config, folder / "whole", {"stops": stops, "attention": attention})
            if save is not None:
                write_atomically(save, json.dumps(found, indent=2) + "\n")
            if against is not None:
                wrong += [f"{against}: {line}" for line in digest_differences(json.loads(against.read_text()), found)]
        print(f"{stops} stops, {config.train.steps} steps: {'; '.join(wrong) or 'equal to the bit'}")
    return 1 if wrong else 0


def tiny_config(folder: Path, steps: int, attention: bool, deterministic: bool) -> DenoiserRun:
    """A 32-px model of two narrow blocks, or a 128-px model with long attention; its autoencoder is random, in a file
    of the folder."""
    side, patch, head = (32, 1, 64) if attention else (8, 2, 16)
    autoencoder = AutoencoderConfig(latent_channels=4, block_out_channels=(8, 8, 16), norm_num_groups=4)
    model = ModelConfig(
        mmdit=MMDiTConfig(
            sample_size=side,
            patch_size=patch,
            in_channels=4,
            num_layers=2,
            attention_head_dim=head,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=0,
            pos_embed_max_size=side // patch,
            register_tokens=2,
        ),
        autoencoder=autoencoder,
        conditioning=ConditioningConfig(expression_tokens=2, identity_layers=1),
        autoencoder_weights=str(folder / "autoencoder.safetensors"),
    )
    _, network = build_networks(model)
    save_weights(network.init(jax.random.key(1)), folder / "autoencoder.safetensors", "float32", autoencoder)
    return DenoiserRun(
        data=DataConfig(
            image_size=model.image_size, identities=8, expressions_per_identity=4, expressions_per_set=2, workers=1
        ),
        model=model,
        train=TrainConfig(
            steps=steps,
            batch_size=2 if attention else 8,
            compute_dtype="bfloat16" if attention else "float32",
            deterministic=deterministic,
            log_every=1,
            probe_every=0,
            checkpoint_every=10,
        ),
    )


@dataclasses.dataclass
class Start:
    """Starts trainings of the preset in a folder."""

    folder: Path
    """Holds `preset.py`, and a run folder for each name."""
    fresh_cache: bool
    """Whether every start has an empty folder for compiled programs; else all share one."""

    def train(self, name: str, number: signal.Signals | None, at: int | None) -> tuple[int, str]:
        """Runs the training command; sends it a signal soon after it has logged step `at`.

        Returns:
            Its exit status and what it printed.
        """
        command = [sys.executable, "-m", "genaffect_jax.train"]
        command += ["--config", str(self.folder / "preset.py"), "--workdir", str(self.folder / name)]
        with tempfile.TemporaryDirectory() as empty:
            cache = empty if self.fresh_cache else str(self.folder / "cache")
            variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
            said = []
            with subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
            ) as process:
                assert process.stderr is not None
                for line in process.stderr:
                    said.append(line)
                    logged = re.match(r"step (\d+)/", line)
                    if number is not None and at is not None and logged and int(logged[1]) >= at:
                        time.sleep(random.Random(at).random() * 0.1)
                        process.send_signal(number)
                        at = None
        return process.returncode, "".join(said)


def stop_and_continue(start: Start, stops: int, kill: bool, chance: random.Random) -> list[str]:
    """Stops the training `stops` times and lets it end; returns what was not as it should be."""
    wrong, step = [], 0
    for stop in range(1, stops + 1):
        number = signal.SIGKILL if kill else chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
        began = time.perf_counter()
        # The first step of a process compiles and is not logged.
        status, said = start.train("stopped", number, step + 1 + chance.randint(1, LONGEST_LEG))
        before, step = step, Checkpoints(start.folder / "stopped").latest_step() or 0
        print(
            f"stop {stop}: {number.name}, status {status}, steps {before} to {step}, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
        if status != (-signal.SIGKILL if kill else INTERRUPTED):
            wrong.append(f"stop {stop}: status {status}: {said[-500:]}")
        if before and f"continuing at step {before} of" not in said:
            wrong.append(f"stop {stop}: did not continue at step {before}: {said[:500]}")
    status, said = start.train("stopped", None, None)
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


def digest(config: DenoiserRun, workdir: Path, settings: dict[str, object]) -> dict[str, Any]:
    """Checksums of a finished training's state, its losses, and the environment that it recorded, if it did."""
    state, _ = restore(config, workdir)
    sums = {}
    for field in ("parameters", "ema", "optimizer"):
        total = hashlib.sha256()
        for leaf in jax.tree.leaves(getattr(state, field)):
            total.update(np.asarray(leaf).tobytes())
        sums[field] = total.hexdigest()
    record = RunDir(workdir).environment
    return {
        "settings": {**settings, "steps": config.train.steps, "deterministic": config.train.deterministic},
        "environment": json.loads(record.read_text())["environment"] if record.exists() else None,
        "sha256": sums,
        "losses": {str(step): loss for step, loss in losses(workdir).items()},
    }


def digest_differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two digests; environments are named only beside other differences."""
    if expected["settings"] != found["settings"]:
        return [f"is of a training with {expected['settings']}, this is one with {found['settings']}"]
    wrong = [f"{name} differs" for name, value in expected["sha256"].items() if found["sha256"][name] != value]
    steps = [step for step, loss in expected["losses"].items() if found["losses"].get(step) != loss]
    if steps:
        first = steps[0]
        wrong.append(
            f"{len(steps)} losses differ, the first in step {first}: {found['losses'].get(first)}, expected "
            f"{expected['losses'][first]}"
        )
    if wrong and expected["environment"] is not None and found["environment"] is not None:
        wrong += environment_differences(expected["environment"], found["environment"])
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
