"""What settings with a path stand for: recorded when a run begins, and compared when a path differs later.

A run may be continued with the same images or weights under another path. Their digest decides, not where they lie.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from genaffect_jax.checkpoints.digests import RunDigests, content_digest
from genaffect_jax.checkpoints.run_dir import Run, RunDir
from genaffect_jax.config import DenoiserRun, EncoderRun, to_json
from genaffect_jax.data.sources.base import Source
from genaffect_jax.errors import WeightsError
from genaffect_jax.io.atomic import write_atomically
from genaffect_jax.io.package_files import PACKAGE_PREFIX
from genaffect_jax.io.weight_file import resolve_weights
from genaffect_jax.models.face_encoders.onnx_expression import ONNX_SUFFIX, OnnxExpressionEncoder
from genaffect_jax.parallel.distributed import is_first

IMAGES = "data.root"
TEACHER = "distillation.teacher"
# Folder, in that of a diffusers pipeline, that a setting reads.
_PIPELINE_PARTS = {"model.autoencoder_weights": "vae", "model.transformer_weights": "transformer"}


def settle_sources(run_dir: RunDir, config: Run, images: Source) -> None:
    """Records the digests of everything that a setting with a path stands for, as long as there is no checkpoint; from
    then on requires that a changed path leads to the same content, and writes `config.json`.

    Of several processes the first does this.

    Args:
        run_dir: the run folder.
        config: the configuration.
        images: the training images.

    Raises:
        ConfigError: a path differs from that of the run, and the content too, or the content was not recorded.
        WeightsError: there is nothing under a changed path.
        CheckpointError: the record is damaged.
    """
    if not is_first():
        return
    if not run_dir.has_checkpoint:
        sources: dict[str, str] = {}
        for name, value in weight_sources(config).items():
            with suppress(WeightsError):  # what cannot be read ends the start where it is read, in better words
                sources[name] = source_digest(name, value)
        if config.data.root is not None:
            sources[IMAGES] = images.fingerprint()
        RunDigests(RunDigests.read(run_dir).files, sources).write(run_dir)
        return
    moved = run_dir.moved(config)
    if not moved:
        return
    recorded, weights = RunDigests.read(run_dir).sources, weight_sources(config)
    other = []
    for change in moved:
        name = change.field
        if name != IMAGES and name not in weights:
            continue  # this run does not use it
        if name not in recorded:
            if Path(change.before).resolve() != Path(change.now).resolve():
                other.append(f"{change.line}: the content was not recorded when the run began")
            continue
        found = images.fingerprint() if name == IMAGES else source_digest(name, weights[name])
        if found != recorded[name]:
            other.append(f"{change.line}: another content")
    if other:
        raise run_dir.refusal(other)
    write_atomically(run_dir.config, to_json(config))


def weight_sources(config: Run) -> dict[str, str]:
    """Settings that name weights or tables which the run uses, with their values."""
    found: dict[str, object] = {}
    if isinstance(config, DenoiserRun):
        model, auxiliary = config.model, config.auxiliary
        found = {
            "model.autoencoder_weights": model.autoencoder_weights,
            "model.transformer_weights": model.transformer_weights,
            "model.identity_encoder": model.identity_encoder,
            "model.expression_encoder": model.expression_encoder,
            "text.embeddings": config.text.embeddings if model.mmdit.reads_prompts else None,
            "auxiliary.identity_encoder": auxiliary.identity_weight and auxiliary.identity_encoder,
            "auxiliary.expression_encoder": auxiliary.expression_weight and auxiliary.expression_encoder,
            TEACHER: config.distillation.teacher,
        }
    if isinstance(config, EncoderRun):
        found = {"degrade.autoencoder": config.degrade.autoencoder}
    return {name: str(value) for name, value in found.items() if value}


def source_digest(name: str, source: str) -> str:
    """SHA-256 of what `package:NAME`, a file or a folder holds; of a pipeline or a run, of the part that is read.

    Args:
        name: the setting, such as `model.autoencoder_weights`.
        source: its value.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
    """
    if name == TEACHER:
        checkpoints = RunDir(Path(source)).checkpoints
        steps = [int(entry.name) for entry in checkpoints.glob("*") if entry.name.isdecimal()]
        return content_digest(checkpoints / str(max(steps, default="")) / "ema")
    if source.startswith(PACKAGE_PREFIX):
        return content_digest(resolve_weights(source))
    if source.endswith(ONNX_SUFFIX):
        return OnnxExpressionEncoder(Path(source)).checksum  # of settings and network, which lie in two files
    part = Path(source) / _PIPELINE_PARTS.get(name, "")
    return content_digest(part if part.is_dir() else Path(source))
