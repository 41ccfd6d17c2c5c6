"""Checkpoints: state, input position and configuration saved together, atomically and in the background (orbax)."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.hosts import first_process_first, is_first, others_agree
from genaffect_jax.parallel.sharding import parameter_shardings, place
from genaffect_jax.training.state import TrainState

Found = TypeVar("Found")

# What orbax and tensorstore raise for files that are missing, cut off, or of other arrays than asked for.
READ_ERRORS = (ValueError, KeyError, OSError)


class CheckpointError(RuntimeError):
    """A checkpoint is missing or does not fit."""


class Checkpoints:
    """The checkpoints of one working folder, `WORKDIR/checkpoints/<step>/`, and `WORKDIR/fixed/`.

    Each checkpoint holds the items `parameters` (what trains), `ema` (its average) and `optimiser` (arrays),
    `position` (the input iterator's state) and `config` (the resolved configuration). What does not train, which may
    be nearly all of a model, is written once, before the first checkpoint, into `fixed`; it is there if there is such.
    A sampler reads `ema`, `config` and `fixed`.

    A checkpoint appears under its name only when it is complete. If the newest is damaged all the same, the one before
    is read, with a warning.
    """

    def __init__(self, workdir: Path, keep: int = 1, warn: Callable[[str], None] = warnings.warn):
        """Args:
        workdir: the working folder.
        keep: number of newest checkpoints that stay.
        warn: is told of a damaged checkpoint.
        """
        self.folder = (workdir / "checkpoints").resolve()
        self.fixed_folder = (workdir / "fixed").resolve()
        self.damaged_folder = (workdir / "damaged").resolve()
        self._warn = warn
        self._unreadable: set[int] = set()
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, but for those that were found damaged."""
        return max(set(self._manager.all_steps()) - self._unreadable, default=None)

    def save(self, state: TrainState, position: Any, config: str) -> None:
        """Starts saving; returns once the state may be changed. A step that is saved already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if not self._manager.all_steps():
            self._save_fixed(state.fixed)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(state.parameters),
                ema=ocp.args.StandardSave(state.ema),
                optimiser=ocp.args.StandardSave(state.optimiser),
                position=ocp.args.JsonSave(position),
                config=ocp.args.JsonSave(json.loads(config)),
            ),
        )

    def save_for_sampling(self, step: int, parameters: Parameters, fixed: Parameters, config: str) -> None:
        """Writes a checkpoint that can be sampled from and not continued, as the first of its folder.

        Args:
            step: step that the parameters come from.
            parameters: the averages.
            fixed: the other parameters.
            config: the configuration that rebuilds the model, as JSON.
        """
        self._save_fixed(fixed)
        items = ocp.args.Composite(ema=ocp.args.StandardSave(parameters), config=ocp.args.JsonSave(json.loads(config)))
        self._manager.save(step, args=items)

    def restore(self, abstract: TrainState) -> tuple[TrainState, Any]:
        """The newest state that can be read, placed as `abstract` says, and the input position that belongs to it.

        Newer checkpoints, which could not be read, are moved to `WORKDIR/damaged/`: the run will write their steps
        again.

        Raises:
            CheckpointError: none can be read, or none fits the configuration.
        """
        items = ocp.args.Composite(
            parameters=ocp.args.StandardRestore(abstract.parameters),
            ema=ocp.args.StandardRestore(abstract.ema),
            optimiser=ocp.args.StandardRestore(abstract.optimiser),
            position=ocp.args.JsonRestore(),
        )
        step, found = self._newest("this configuration", lambda step: self._manager.restore(step, args=items))
        with first_process_first("damaged checkpoints"):
            for newer in self._unreadable if is_first() else ():
                self.damaged_folder.mkdir(exist_ok=True)
                shutil.rmtree(self.damaged_folder / str(newer), ignore_errors=True)
                shutil.move(self.folder / str(newer), self.damaged_folder / str(newer))
        if self._unreadable:
            self._manager.reload()
            self._unreadable.clear()
        counter = place(jax.numpy.asarray(step, jax.numpy.int32), abstract.step.sharding)
        fixed = self._restore_fixed(abstract.fixed)
        return TrainState(counter, found["parameters"], fixed, found["ema"], found["optimiser"]), found["position"]

    def config(self) -> str:
        """The newest checkpoint's configuration as JSON."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return json.dumps(self._newest("any", lambda step: self._manager.restore(step, args=items))[1]["config"])

    def averaged_parameters(self, functional: Functional, mesh: jax.sharding.Mesh) -> Parameters:
        """The newest full parameters, averaged where they trained, read straight to their devices."""
        shardings = parameter_shardings(functional.logical_axes, functional.shapes, mesh)
        abstract = {
            name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[name])
            for name, s in functional.shapes.items()
        }
        names = self._fixed_names()
        ema = {name: s for name, s in abstract.items() if name not in names}
        items = ocp.args.Composite(ema=ocp.args.StandardRestore(ema))
        missing = "" if names else f" ({self.fixed_folder}, for what did not train, is not there)"
        found = self._newest(f"its configuration{missing}", lambda step: self._manager.restore(step, args=items))[1]
        return {**found["ema"], **self._restore_fixed({name: abstract[name] for name in names if name in abstract})}

    def close(self) -> None:
        """Waits until everything is on disk; a failed save raises here."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _save_fixed(self, fixed: Parameters) -> None:
        # Waits: no checkpoint may be complete without it. A folder left by a run that ended before its first
        # checkpoint is replaced.
        if fixed:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self.fixed_folder, fixed, force=True)
                checkpointer.wait_until_finished()

    def _fixed_names(self) -> frozenset[str]:
        if not self.fixed_folder.is_dir():
            return frozenset()
        with ocp.StandardCheckpointer() as checkpointer:
            return frozenset(checkpointer.metadata(self.fixed_folder).item_metadata.tree)

    def _restore_fixed(self, abstract: Mapping[str, Any]) -> Parameters:
        if not abstract:
            return {}
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(self.fixed_folder, abstract)
        except (ValueError, FileNotFoundError) as e:
            raise CheckpointError(f"{self.fixed_folder}: does not fit this configuration: {e}") from e

    def _newest(self, what: str, read: Callable[[int], Found]) -> tuple[int, Found]:
        """The newest step that can be read, and what was read.

        A checkpoint that does not fit the configuration cannot be told from a damaged one, but then the ones before do
        not fit either: the error is that of the newest.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise CheckpointError(f"{self.folder}: no complete checkpoint found; train first, with the same --workdir")
        errors: list[Exception] = []
        for step in steps:
            try:
                found = read(step)
            except READ_ERRORS as e:
                if not others_agree(f"checkpoint {step} cannot be read"):
                    raise CheckpointError(
                        f"{self.folder / str(step)}: cannot be read by this process, but by others ({e}); all hosts "
                        "must share the folder. If the checkpoint is damaged, move it away and start all again"
                    ) from e
                errors.append(e)
                continue
            if errors:
                self._unreadable.update(s for s in steps if s > step)
                self._warn(f"{self.folder / str(steps[0])} is damaged ({errors[0]}); going back to step {step}")
            return step, found
        raise CheckpointError(
            f"{self.folder / str(steps[0])}: does not fit {what}, or is damaged: {errors[0]}"
        ) from errors[0]
