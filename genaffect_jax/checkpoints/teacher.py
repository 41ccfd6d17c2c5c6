"""The teacher of a student's training, copied into the student's run folder when the run begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from genaffect_jax.checkpoints.averaged_weights import AveragedWeights
from genaffect_jax.checkpoints.digests import file_digest, record_files, require_intact
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun
from genaffect_jax.errors import ConfigError, listed
from genaffect_jax.io.weight_file import load_weights, save_weights
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.distributed import first_process_first, gathered, is_first

FIELD = "distillation.teacher"
# Of `model`: where files lie, and what changes no number of the network.
_FREE = ("autoencoder_weights", "transformer_weights", "identity_encoder", "expression_encoder")


def install_teacher(run_dir: RunDir, config: DenoiserRun, network: Functional, mesh: Mesh) -> Parameters:
    """Copies the teacher's averaged parameters into the folder, unless the run continues with those there, and reads
    them, float32. All processes call it in step, as all read the teacher's checkpoint.

    Args:
        run_dir: the student's run folder, with its frozen networks.
        config: the student's run; `distillation.teacher` is a run folder.
        network: the denoiser.
        mesh: devices.

    Raises:
        ConfigError: there is no such run folder, or its model or frozen networks are others than the student's.
        CheckpointError, WeightsError: the teacher cannot be read.
    """
    teacher = config.distillation.teacher
    assert teacher is not None
    parameters = None if run_dir.has_checkpoint else gathered(_read(teacher, run_dir, config, network, mesh))
    with first_process_first("teacher"):
        if parameters is not None and is_first():
            save_weights(parameters, run_dir.teacher, "float32", config.model)
            record_files(run_dir, [run_dir.teacher])
        require_intact(run_dir, run_dir.teacher)
        return load_weights(network, run_dir.teacher)


def _read(teacher: Path, run_dir: RunDir, config: DenoiserRun, network: Functional, mesh: Mesh) -> Parameters:
    try:
        weights = AveragedWeights(teacher)
    except ConfigError as e:
        raise e.renamed(FIELD) from e
    source, theirs = weights.run_dir, weights.config().model
    different = [
        f"model.{field.name}"
        for field in dataclasses.fields(theirs)
        if field.name not in _FREE and getattr(theirs, field.name) != getattr(config.model, field.name)
    ]
    for own, other in zip(run_dir.frozen_networks, source.frozen_networks, strict=True):
        if own.exists() and (not other.exists() or file_digest(other) != file_digest(own)):
            different.append(own.name)
    if different:
        raise ConfigError(
            f"a student has the model and the frozen networks of its teacher, but these differ: {listed(different)}",
            field=FIELD,
            found=teacher,
        )
    return weights.parameters(network, mesh)
