"""Trained models as exports read them: the averages of one checkpoint, the denoiser alone or with all components."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import jax

from genaffect_jax.checkpoints.averaged_weights import AveragedWeights
from genaffect_jax.checkpoints.components import (
    FaceEncoders,
    read_autoencoder,
    read_encoders,
    read_prompts,
    read_prototypes,
)
from genaffect_jax.checkpoints.manager import LATEST, Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, LoraConfig, MeshConfig, to_json
from genaffect_jax.data.prompts.table import PromptTable
from genaffect_jax.errors import ConfigError
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.expressions.space import EncoderSpace, ExpressionSpace, UnitSpace
from genaffect_jax.interop.diffusers.components import TRANSFORMER
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.models.parameter_names import MMDIT
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.trainable import freeze

DTYPES: dict[str, WeightDType] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Stored types of weights, by the values of the option `dtype`."""


class TrainedDenoiser:
    """A trained denoiser; its parameters are read when they are first asked for.

    Attributes:
        run_dir: the run folder.
        config: the run that trained it; `sampling` is the run folder's.
        network: a `LoraNetwork` if the model has low-rank additions.
    """

    def __init__(self, model: Path, checkpoint: str = LATEST):
        """Opens a run folder or a released model.

        Args:
            model: the folder, or `package:NAME`.
            checkpoint: `latest`, `best` (by the loss on held-out people), or the number of a step.

        Raises:
            ConfigError: `model` is no run folder, or that of an autoencoder or a face encoder, or of a model without
                decoupled attention; or its `config.json` is damaged.
            CheckpointError: there is no complete checkpoint, or not the one asked for.
        """
        self._weights = AveragedWeights(model, checkpoint)
        self.run_dir = self._weights.run_dir
        try:
            trained = self._weights.config()
        except ConfigError as e:
            raise ConfigError(f"no run of a denoiser, which alone is exported ({e})", field="model", found=model) from e
        # As `Pipeline` does: the run folder's own settings may have changed after the checkpoint was saved.
        self.config = dataclasses.replace(trained, sampling=self.run_dir.sampling_defaults())
        attention = self.config.model.conditioning.attention
        if attention != "decoupled":
            raise ConfigError(
                f"its conditions enter by attention {attention!r}; only models with 'decoupled' are exported",
                field="model",
                found=model,
            )
        self.network: Functional[GenAffect] = build_networks(self.config.model)[0]

    @cached_property
    def parameters(self) -> Parameters:
        """Averages of the trained parameters, and the others.

        Raises:
            CheckpointError: the newest checkpoint does not fit its configuration.
        """
        one_device = make_mesh(MeshConfig(), jax.local_devices()[:1])
        return self._weights.parameters(self.network, one_device)

    @property
    def step(self) -> int:
        """Step of the checkpoint."""
        assert self.parameters
        return self._weights.step()

    @cached_property
    def plain(self) -> Parameters:
        """The parameters with low-rank additions, if there are any, in the kernels."""
        return self.network.plain(self.parameters) if isinstance(self.network, LoraNetwork) else self.parameters

    @property
    def transformer_names(self) -> frozenset[str]:
        """Names of the parameters that a transformer without condition branches has too."""
        return frozenset(f"{MMDIT}{name}" for name in TRANSFORMER.network(self.config.model.mmdit).shapes)

    @property
    def transformer(self) -> Parameters:
        """The plain parameters of `transformer_names`, by their names in such a transformer."""
        return {name.removeprefix(MMDIT): self.plain[name] for name in self.transformer_names}

    @property
    def trained_transformer_names(self) -> list[str]:
        """Names of the transformer's own parameters (no condition branch, no addition) that were trained."""
        return sorted(freeze(self.network, self.config.train).trainable & self.transformer_names)


def write_denoiser(run_dir: RunDir, config: DenoiserRun, step: int, parameters: Parameters) -> None:
    """Writes configuration and checkpoint of a run that can be sampled from, not continued, into an existing folder.

    Args:
        run_dir: the folder; its components are for the caller to write.
        config: the run, without low-rank additions.
        step: step that the parameters come from.
        parameters: all parameters of the denoiser.
    """
    text = to_json(config)
    run_dir.config.write_text(text)
    with Checkpoints(run_dir.path) as checkpoints:
        checkpoints.save_for_sampling(step, *build_networks(config.model)[0].split(parameters), text)


@dataclass(frozen=True)
class TrainedModel:
    """The networks of one checkpoint; low-rank additions are merged into the kernels."""

    run_dir: RunDir
    """The run folder."""
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
            ConfigError: see `TrainedDenoiser`.
            CheckpointError: there is no complete checkpoint, or not the one asked for.
            DataError, WeightsError: a component is missing or damaged.
        """
        denoiser = TrainedDenoiser(model, checkpoint)
        run_dir, config = denoiser.run_dir, denoiser.config
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))
        autoencoder = build_networks(config.model)[1]
        faces = read_encoders(run_dir, config.model)
        in_units = config.model.conditioning.expression_space == "units"
        return cls(
            run_dir=run_dir,
            step=denoiser.step,
            config=config,
            denoiser=denoiser.plain,
            autoencoder=read_autoencoder(run_dir, autoencoder, config.model.autoencoder),
            faces=faces,
            prompts=read_prompts(run_dir, config),
            prototypes=None if in_units or faces.expression is None else read_prototypes(run_dir, faces.expression),
        )

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.run_dir.path.name

    @property
    def space(self) -> ExpressionSpace:
        """The model's vectors of words; it reads no image files."""
        if self.prototypes is None:
            return UnitSpace()
        return EncoderSpace(self.prototypes.encoder, self.prototypes.vectors)
