"""What the training commands share around the loop: the working folder's configuration, and how a run ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from genaffect_jax.config import AutoencoderRun, Config, ConfigError, from_json, to_json
from genaffect_jax.config.encoders import EncoderRun
from genaffect_jax.data.pictures import DataError
from genaffect_jax.models.weights import WeightsError
from genaffect_jax.training.background_errors import told_once
from genaffect_jax.training.checkpoint import CheckpointError
from genaffect_jax.training.guard import TrainingError

COMPLETE, FAILED, INTERRUPTED = 0, 1, 130

# No defects of this program: disk full, quota used up, read-only, not allowed, disk broken.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

# Fields that may change between the runs of one working folder: they do not touch what is learned, but for the order of
# sums over devices.
_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.sheet_every",
    "train.gap_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.most_skipped",
    "train.profile_at",
    "data.workers",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)


def claim_workdir(workdir: Path, config: Config | AutoencoderRun | EncoderRun) -> str:
    """Writes `config.json` into the working folder, or checks that the run there is the same one.

    Returns:
        The configuration as JSON.

    Raises:
        ConfigError: the folder belongs to a run with other settings, which are listed, or cannot be written to.
    """
    path = workdir / "config.json"
    if path.exists():
        before = from_json(type(config), path.read_text())
        changed = [line for line in _differences(before, config) if line.split("=")[0] not in _MAY_CHANGE]
        if changed:
            raise ConfigError(
                f"--workdir {workdir}: holds a run with other settings ({'; '.join(changed)}); "
                "use another folder, or the same settings to continue it"
            )
    text = to_json(config)
    temporary = path.with_suffix(".tmp")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as e:
        raise ConfigError(f"--workdir {workdir}: cannot be written to: {e.strerror}") from e
    return text


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if hasattr(before, "__dataclass_fields__"):
        return [
            line
            for field in before.__dataclass_fields__
            for line in _differences(getattr(before, field), getattr(now, field), f"{name}.{field}".lstrip("."))
        ]
    return [] if before == now else [f"{name}={before}, now {now}"]


def run_reporting_errors(work: Callable[[Console], bool]) -> int:
    """Runs `work(console)`, which returns True if it is complete, and turns its end into an exit status.

    Expected failures (configuration, data, checkpoint, diverged training, a full or read-only disk) print one message;
    anything else is a defect of this program and keeps its traceback.
    """
    console = Console(stderr=True)
    try:
        with told_once():
            return COMPLETE if work(console) else INTERRUPTED
    except (ConfigError, DataError, WeightsError, CheckpointError, TrainingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return FAILED
    except OSError as e:
        if e.errno not in _MACHINE:
            raise
        print(f"error: {e.filename or 'a file'}: {e.strerror}; the checkpoints are as they were", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
