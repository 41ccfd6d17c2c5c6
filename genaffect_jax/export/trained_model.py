"""A trained model with everything that a run folder holds of it, for the exports."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from genaffect_jax.checkpoints.components import (
    FaceEncoders,
    read_autoencoder,
    read_encoders,
    read_prompts,
    read_prototypes,
)
from genaffect_jax.checkpoints.manager import LATEST, Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, LoraConfig, MeshConfig, from_json
from genaffect_jax.data.prompts.table import PromptTable
from genaffect_jax.errors import CheckpointError
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.expressions.space import EncoderSpace, ExpressionSpace, UnitSpace
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Parameters
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.parallel.mesh import make_mesh


@dataclass(frozen=True)
class TrainedModel:
    """The networks of one checkpoint; low-rank additions are merged into the kernels."""

    name: str
    """Name of the run folder."""
    step: int
    """Step of the checkpoint."""
    config: DenoiserRun
    """The run that trained the model, with `model.lora.rank` 0."""
    denoiser: Parameters
    """Averaged parameters, float32."""
    autoencoder: Parameters
    """Parameters of the autoencoder, float32."""
    faces: FaceEncoders
    """The face encoders."""
    prompts: PromptTable | None
    """Text embeddings, for models that read prompts."""
    prototypes: WordPrototypes | None
    """Vectors of words, for models whose expressions are an encoder's vectors."""

    @classmethod
    def load(cls, model: Path, checkpoint: str = LATEST) -> Self:
        """Reads the averaged weights of a checkpoint, and the frozen components.

        Args:
            model: the run folder.
            checkpoint: `latest`, `best`, or the number of a step.

        Raises:
            ConfigError: `model` is no run folder.
            CheckpointError: there is no complete checkpoint, or not the one asked for.
            DataError, WeightsError: a component is missing or damaged.
        """
        run_dir = RunDir.open(model)
        checkpoints = Checkpoints(run_dir.path)
        asked = checkpoints.step(checkpoint)
        step = checkpoints.latest_step() if asked is None else asked
        if step is None:
            raise CheckpointError(f"{model}: has no complete checkpoint")
        config = from_json(DenoiserRun, checkpoints.config(step))
        denoiser, autoencoder = build_networks(config.model)
        parameters = checkpoints.averaged_parameters(denoiser, make_mesh(MeshConfig()), step)
        if isinstance(denoiser, LoraNetwork):
            parameters = denoiser.plain(parameters)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))
        faces = read_encoders(run_dir, config.model)
        in_units = config.model.conditioning.expression_space == "units"
        return cls(
            name=run_dir.path.name,
            step=step,
            config=config,
            denoiser=parameters,
            autoencoder=read_autoencoder(run_dir, autoencoder, config.model.autoencoder),
            faces=faces,
            prompts=read_prompts(run_dir, config),
            prototypes=None if in_units or faces.expression is None else read_prototypes(run_dir, faces.expression),
        )

    @property
    def space(self) -> ExpressionSpace:
        """The model's vectors of words; it reads no image files."""
        if self.prototypes is None:
            return UnitSpace()
        return EncoderSpace(self.prototypes.encoder, self.prototypes.vectors)
