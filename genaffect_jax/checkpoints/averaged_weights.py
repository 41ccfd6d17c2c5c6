"""The averaged weights of a trained denoiser: of a checkpoint in its run folder, or of a released model."""

from __future__ import annotations

from pathlib import Path

import jax

from genaffect_jax.checkpoints.digests import require_intact
from genaffect_jax.checkpoints.manager import LATEST, Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, from_json
from genaffect_jax.errors import CheckpointError, ConfigError, WeightsError
from genaffect_jax.io.weight_file import read_metadata, read_weights
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.sharding import parameter_shardings

STEP = "step"
"""Header entry of a released model's weight file: the step that its weights come from."""


class AveragedWeights:
    """A trained denoiser's weights; they are read when they are asked for.

    Attributes:
        run_dir: the folder.
    """

    def __init__(self, model: Path, checkpoint: str = LATEST) -> None:
        """Opens the folder.

        Args:
            model: a run folder, the folder of a released model, or `package:NAME`.
            checkpoint: `latest`, `best` (by the loss on held-out people), or the number of a step. A released model
                has no other weights than its latest.

        Raises:
            ConfigError: there is no such folder.
            CheckpointError: there is no such checkpoint.
        """
        self.run_dir = RunDir.open(model)
        self._checkpoints: Checkpoints | None = None
        self._asked: int | None = None
        if self.run_dir.checkpoints.is_dir():
            self._checkpoints = Checkpoints(self.run_dir.path)
            self._asked = self._checkpoints.step(checkpoint)
        elif checkpoint != LATEST:
            raise CheckpointError(f"{self.run_dir.path}: no checkpoint {checkpoint!r}: a released model has none")

    def config(self) -> DenoiserRun:
        """The run that trained the weights.

        Raises:
            ConfigError: it is no run of a denoiser, or is damaged.
            CheckpointError: no checkpoint can be read.
        """
        if self._checkpoints is not None:
            return from_json(DenoiserRun, self._checkpoints.config(self._asked))
        try:
            return from_json(DenoiserRun, self.run_dir.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{self.run_dir.config}: cannot be read ({e})") from e

    def parameters(self, network: Functional, mesh: jax.sharding.Mesh, *, cast_kernels: bool = False) -> Parameters:
        """All parameters of the network, averages of the trained ones, on the devices of a mesh.

        Args:
            network: the network.
            mesh: devices that hold the parameters.
            cast_kernels: read kernels in the type that they are multiplied in (`Functional.compute_dtypes`).

        Raises:
            CheckpointError: the checkpoint does not fit the network, or cannot be read.
            WeightsError: so for the file of a released model.
        """
        if self._checkpoints is not None:
            return self._checkpoints.averaged_parameters(network, mesh, self._asked, cast_kernels=cast_kernels)
        require_intact(self.run_dir, self.run_dir.denoiser)
        types = network.compute_dtypes if cast_kernels else {}
        shardings = parameter_shardings(network.logical_axes, network.shapes, mesh)
        return {
            name: jax.device_put(value.astype(types.get(name, value.dtype)), shardings[name])
            for name, value in read_weights(network, self.run_dir.denoiser).items()
        }

    def step(self) -> int:
        """Step of the checkpoint that was read, or that a released model comes from.

        Raises:
            WeightsError: the released model's file says no step.
        """
        if self._checkpoints is not None:
            step = self._checkpoints.latest_step() if self._asked is None else self._asked
            assert step is not None  # its parameters have been read
            return step
        stored = read_metadata(self.run_dir.denoiser).get(STEP, "")
        if not stored.isdecimal():
            raise WeightsError(f"{self.run_dir.denoiser}: header entry {STEP!r} is {stored!r}, must be a number")
        return int(stored)
