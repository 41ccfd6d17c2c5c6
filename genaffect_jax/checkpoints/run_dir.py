"""The run folder: its files by name, and the configuration that makes it the folder of one run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genaffect_jax.config import AutoencoderRun, DenoiserRun, from_json, to_json
from genaffect_jax.config.encoders import EncoderRun
from genaffect_jax.errors import ConfigError
from genaffect_jax.parallel.distributed import describe_process, is_first

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
AUTOENCODER_FILE = "autoencoder.safetensors"
PROMPTS_FILE = "prompts.safetensors"
IDENTITY_FILE = "identity_encoder.safetensors"
EXPRESSION_FILE = "expression_encoder.safetensors"
ONNX_EXPRESSION_FILE = "expression_encoder.json"
"""Takes the place of `EXPRESSION_FILE` where the encoder is an ONNX file; that lies beside it."""
PROTOTYPES_FILE = "word_prototypes.safetensors"
REPORT_FILE = "report.json"

# Fields that may change between the runs of one run folder: they do not touch what is learned, but for the order of
# sums over devices.
_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.probe_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.max_consecutive_skips",
    "train.profile_at",
    "data.workers",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)


def claim_workdir(workdir: Path, config: DenoiserRun | AutoencoderRun | EncoderRun) -> str:
    """Writes `config.json` into the run folder, or checks that the run there is the same one.

    Of several processes the first writes it; the others, which come after it, must find it.

    Returns:
        The configuration as JSON.

    Raises:
        ConfigError: the folder belongs to a run with other settings, which are listed, or cannot be written to. Or the
            hosts do not share it.
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
    if not is_first():
        if not path.exists() or path.read_text() != text:
            raise ConfigError(
                f"--workdir {workdir}: {describe_process()} does not find there what process 0 has written; the folder "
                "must lie on a file system that all hosts share, and all processes need the same settings"
            )
        return text
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
