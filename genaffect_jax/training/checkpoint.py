"""Checkpoints: state, input position and configuration saved together, atomically and in the background (orbax)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.sharding import parameter_shardings
from genaffect_jax.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint is missing or does not fit."""


class Checkpoints:
    """The checkpoints of one working folder, `WORKDIR/checkpoints/<step>/`.

    Each holds the items `parameters` (what trains), `ema` (averages, and what does not train) and `optimiser`
    (arrays), `position` (the input iterator's state) and `config` (the resolved configuration), so a sampler reads
    `ema` and `config` alone.
    """

    def __init__(self, workdir: Path, keep: int = 1):
        self.folder = (workdir / "checkpoints").resolve()
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Any, config: str) -> None:
        """Starts saving; returns once the state may be changed. A step that is saved already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(state.parameters),
                ema=ocp.args.StandardSave(state.averaged),
                optimiser=ocp.args.StandardSave(state.optimiser),
                position=ocp.args.JsonSave(position),
                config=ocp.args.JsonSave(json.loads(config)),
            ),
        )

    def restore(self, abstract: TrainState) -> tuple[TrainState, Any]:
        """The newest state, placed as `abstract` says, and the input position that belongs to it."""
        step = self._require_step()
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    parameters=ocp.args.StandardRestore(abstract.parameters),
                    ema=ocp.args.StandardRestore(abstract.averaged),
                    optimiser=ocp.args.StandardRestore(abstract.optimiser),
                    position=ocp.args.JsonRestore(),
                ),
            )
        except ValueError as e:
            raise CheckpointError(f"{self.folder / str(step)}: does not fit this configuration: {e}") from e
        counter = jax.device_put(jax.numpy.asarray(step, jax.numpy.int32), abstract.step.sharding)
        ema = {name: items["ema"][name] for name in abstract.ema}
        fixed = {name: items["ema"][name] for name in abstract.fixed}
        return TrainState(counter, items["parameters"], fixed, ema, items["optimiser"]), items["position"]

    def config(self) -> str:
        """The newest checkpoint's configuration as JSON."""
        items = self._manager.restore(self._require_step(), args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return json.dumps(items["config"])

    def averaged_parameters(self, functional: Functional, mesh: jax.sharding.Mesh) -> Parameters:
        """The newest averaged parameters, read straight to their devices."""
        shardings = parameter_shardings(functional.logical_axes, functional.shapes, mesh)
        abstract = {
            name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[name])
            for name, s in functional.shapes.items()
        }
        step = self._require_step()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(abstract)))["ema"]
        except ValueError as e:
            raise CheckpointError(f"{self.folder / str(step)}: does not fit its configuration: {e}") from e

    def close(self) -> None:
        """Waits until everything is on disk; a failed save raises here."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _require_step(self) -> int:
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.folder}: no complete checkpoint found; train first, with the same --workdir")
        return step
