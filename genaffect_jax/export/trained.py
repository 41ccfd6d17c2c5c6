"""The denoiser of a run folder, as exports read it: the newest checkpoint's averages."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, MeshConfig, from_json
from genaffect_jax.interop.diffusers.components import TRANSFORMER
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.models.parameter_names import MMDIT
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.trainable import freeze


class TrainedDenoiser:
    """A trained denoiser; its parameters are read when they are first asked for.

    Attributes:
        run_dir: the run folder.
        config: the run that trained it.
        network: a `LoraNetwork` if the model has low-rank additions.
    """

    def __init__(self, model: Path):
        """Opens a run folder.

        Raises:
            ConfigError: `model` is no run folder.
            CheckpointError: there is no complete checkpoint.
        """
        self.run_dir = RunDir.open(model)
        self._checkpoints = Checkpoints(self.run_dir.path)
        self.config = from_json(DenoiserRun, self._checkpoints.config())
        self.network: Functional[GenAffect] = build_networks(self.config.model)[0]

    @cached_property
    def parameters(self) -> Parameters:
        """Averages of the trained parameters, and the others.

        Raises:
            CheckpointError: the newest checkpoint does not fit its configuration.
        """
        return self._checkpoints.averaged_parameters(self.network, make_mesh(MeshConfig()))

    @property
    def step(self) -> int:
        """Step of the checkpoint."""
        assert self.parameters
        step = self._checkpoints.latest_step()
        assert step is not None  # its parameters have been read
        return step

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
