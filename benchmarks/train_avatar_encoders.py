"""`python benchmarks/train_avatar_encoders.py`: trains all four avatar encoders side by side in a given time.

    python benchmarks/train_avatar_encoders.py --workdir out/encoders --seconds 480

Draws the avatars once and starts one `genaffect_jax.train` per preset; they share one GPU. When the time is
nearly over, it stops them (they write checkpoints) and starts each once more to write weights and report. Further
options go to every training, such as `--data.identities 400`. The four weight files and reports are gathered in
`--out`. Running it again trains on from where the run folder stands.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.cli import parse_with_preset
from genaffect_jax.config.encoders import EncoderRun
from genaffect_jax.data.sources.stored import AvatarSettings, store_avatars
from genaffect_jax.io.atomic import copy_atomically

PRESETS = ("identity_encoder", "expression_encoder", "identity_evaluator", "expression_evaluator")
TRAINING = ("-m", "genaffect_jax.train")
_OPEN_END = 10_000_000  # steps of the part that the clock ends
_RESERVE = 75.0  # seconds for the last checkpoints, starting again, and the reports


Run = TypeVar("Run")


@dataclass(frozen=True)
class _Preset(Generic[Run]):
    """What one training gets; parsed here so that wrong options end this command and not four others."""

    config: Path
    workdir: Path
    run: Annotated[Run, tyro.conf.arg(name="")]


@dataclass
class _Training:
    """One training process and what it writes."""

    preset: Path
    run: EncoderRun
    workdir: Path
    options: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self, steps: int, environment: dict[str, str]) -> None:
        command = [
            sys.executable,
            *TRAINING,
            "--config",
            str(self.preset),
            "--workdir",
            str(self.workdir),
            *self.options,
            "--train.steps",
            str(steps),
        ]
        self.workdir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # In a session of its own, so that Ctrl-C reaches it once, through this process.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    @property
    def log(self) -> Path:
        return self.workdir / "log.txt"

    def rows(self) -> list[dict[str, float]]:
        path = self.workdir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def ended(self) -> int | None:
        return None if self.process is None else self.process.poll()


def main(argv: Sequence[str] | None = None) -> int:
    """Trains all presets; returns 0, 1 if one of them failed, or 130 after Ctrl-C (each then has a checkpoint)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument("--out", type=Path, help="folder for weights and reports; WORKDIR/encoders if left out")
    parser.add_argument("--seconds", type=float, default=480.0, help="time for everything, from start to reports")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the four presets")
    own, options = parser.parse_known_args(argv)
    start = time.monotonic()
    stored = own.workdir / "stored"
    options = [*options, "--stored", str(stored)]
    trainings = []
    for name in PRESETS:
        preset, folder = own.configs / f"{name}.py", own.workdir / name
        parsed = parse_with_preset(
            _Preset, [EncoderRun], ["--config", str(preset), "--workdir", str(folder), *options], preset
        )
        trainings.append(_Training(preset, parsed.run, folder, options))
    for data in {t.run.data for t in trainings}:
        settings = AvatarSettings(data.image_size, data.identities, data.expressions_per_identity, data.pose_scale)
        store_avatars(settings, RunDir(stored).avatars, len(os.sched_getaffinity(0)))
    _say(start, "avatars drawn")
    environment = {
        **os.environ,
        # Four processes share the device's memory; each takes what it needs.
        "XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(own.workdir / "compiled")),
    }
    try:
        _train(trainings, environment, start, own.seconds)
    except _TrainingFailedError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        _interrupt(trainings)
    _gather(trainings, own.out or own.workdir / "encoders")
    _say(start, f"{own.out or own.workdir / 'encoders'}: four encoders and their reports")
    return 0


class _TrainingFailedError(RuntimeError):
    """A training ended with an error."""


def _train(trainings: list[_Training], environment: dict[str, str], start: float, seconds: float) -> None:
    for training in trainings:
        training.start(_OPEN_END, environment)
    while time.monotonic() - start < seconds - _RESERVE or not all(t.rows() for t in trainings):
        _require_running(trainings, allowed=())
        time.sleep(0.5)
    _interrupt(trainings)
    for training in trainings:
        step = int(training.rows()[-1]["step"])
        _say(start, f"{training.run.name}: trained for {step} steps")
        training.start(step, environment)  # nothing is left to train: writes weights and report
    while any(t.ended() is None for t in trainings):
        _require_running(trainings, allowed=(0,))
        time.sleep(0.5)
    _require_running(trainings, allowed=(0,))


def _require_running(trainings: list[_Training], allowed: tuple[int, ...]) -> None:
    for training in trainings:
        status = training.ended()
        if status is not None and status not in allowed:
            tail = "\n".join(training.log.read_text(errors="replace").splitlines()[-15:])
            raise _TrainingFailedError(
                f"{training.run.name} ended with status {status}; the end of {training.log}:\n{tail}"
            )


def _interrupt(trainings: list[_Training]) -> None:
    """Ends the processes that run; each finishes its step and writes a checkpoint."""
    running = [t.process for t in trainings if t.process is not None and t.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(_RESERVE)
        except subprocess.TimeoutExpired:  # Python may lose an interrupt that comes while it starts
            process.terminate()
            process.wait()


def _gather(trainings: list[_Training], folder: Path) -> None:
    for training in trainings:
        name = training.run.name
        for found, kept in ((f"{name}.safetensors", f"{name}.safetensors"), ("report.json", f"{name}.report.json")):
            copy_atomically(training.workdir / found, folder / kept)


def _say(start: float, text: str) -> None:
    print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit ends the trainings too
    sys.exit(main())
