"""Checkpoints: state, input position and configuration saved together, atomically and in the background (orbax)."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import orbax.checkpoint as ocp

from genaffect_jax.checkpoints.background_errors import reason_of
from genaffect_jax.checkpoints.digests import require_checkpoint_intact, write_checkpoint_digests
from genaffect_jax.checkpoints.frozen import FrozenParams
from genaffect_jax.checkpoints.preservation import LatestAndBest
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.errors import CheckpointError, LostProcessError
from genaffect_jax.io.output import one_line
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.distributed import first_process_first, is_first, lost_process_behind, others_agree
from genaffect_jax.parallel.sharding import parameter_shardings, place

Found = TypeVar("Found")


class Saved(Protocol):
    """The training state as checkpoints see it: a dataclass with these fields (`training.state.TrainState`)."""

    @property
    def step(self) -> Any: ...

    @property
    def parameters(self) -> Parameters: ...

    @property
    def frozen_params(self) -> Parameters: ...

    @property
    def ema(self) -> Parameters: ...

    @property
    def optimizer(self) -> Any: ...


State = TypeVar("State", bound=Saved)

# Names that `Checkpoints.step` takes beside a number.
LATEST, BEST = "latest", "best"
# Checkpoints are compressed: float32 weights and moments to about 0.9 of their size, moments of zeros to nothing.
SMALLEST_SHARE = 0.8


class Checkpoints:
    """The checkpoints of one run folder: `RunDir.checkpoints`, one folder a step, and `RunDir.frozen_params`.

    Each checkpoint holds the items `parameters` (the trained ones), `ema` (their average) and `optimizer` (moments),
    `position` (the input iterator's state) and `config` (the resolved configuration), and `measured`, its value, if it
    has one. Frozen parameters, which may be nearly all of a model, are written once, before the first checkpoint; the
    folder is absent if there are none. A sampler reads `ema`, `config` and the frozen parameters.

    A checkpoint appears under its name only when it is complete, with its step and the digests of its files
    (`checkpoints.digests`), which are compared before it is read. If the newest is damaged, the one before is read,
    with a warning. Checkpoints are ordered by their steps, not by any clock.

    As a context manager, the object waits for the last save at the end of the block, also when the block has failed.
    """

    def __init__(
        self, workdir: Path, keep: int = 1, warn: Callable[[str], None] = warnings.warn, keep_best: int = 0
    ) -> None:
        """Args:
        workdir: path of the run folder.
        keep: number of newest checkpoints that stay.
        warn: called with a message about a damaged checkpoint or a nearly full disk.
        keep_best: number of checkpoints with the lowest values that stay beside them.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        run_dir = RunDir(workdir.resolve())
        self._run_dir = run_dir
        self.folder = run_dir.checkpoints
        self.frozen_folder = run_dir.frozen_params
        self._frozen = FrozenParams(run_dir)
        self.damaged_folder = run_dir.damaged
        self._warn = lambda message: warn(one_line(message))  # it may be printed as it is
        self._unreadable: set[int] = set()
        self._values: dict[int, float | None] = {}
        self._saving: int | None = None
        self._most = keep + keep_best
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=LatestAndBest(keep, keep_best, self.value),
                    enable_async_checkpointing=True,
                    # In the background of process 0, when all files are written and have no name yet.
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
                ),
            )
        except Exception as e:
            raise CheckpointError(f"{self.folder}: cannot be read: {reason_of(e)}") from e

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the others may be gone, and the end of a save waits for all
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            if not isinstance(error, CheckpointError):
                self._warn(str(failed))  # what ended the run comes first

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, without those that were found damaged; None if there is none."""
        return max(set(self._manager.all_steps()) - self._unreadable, default=None)

    def value(self, step: int) -> float | None:
        """The value that a checkpoint was saved with; None if it has none, or its file cannot be read."""
        if step not in self._values:
            try:
                content = (self.folder / str(step) / "measured" / "metadata").read_text()
                self._values[step] = float(json.loads(content)["value"])
            except (OSError, ValueError, KeyError, TypeError):
                self._values[step] = None
        return self._values[step]

    def step(self, name: str = LATEST) -> int | None:
        """The step that a name stands for: a number, or `best` for the lowest value. `latest` gives None, which stands
        for the newest checkpoint that can be read.

        Raises:
            CheckpointError: there is no such checkpoint, or no such name.
        """
        if name == LATEST:
            return None
        steps = sorted(self._manager.all_steps())
        if name == BEST:
            values = {step: value for step in steps if (value := self.value(step)) is not None}
            if not values:
                raise CheckpointError(f"{self.folder}: no checkpoint has a value, so none is the best (has {steps})")
            return min(values, key=lambda step: (values[step], -step))
        if not name.isdecimal() or int(name) not in steps:
            raise CheckpointError(f"{self.folder}: no checkpoint {name!r}; may be {LATEST}, {BEST}, or one of {steps}")
        return int(name)

    def save(self, state: Saved, position: Any, config: str, value: float | None = None) -> None:
        """Starts saving; returns once the state may be changed. A step that is saved already is left alone.

        Args:
            state: the training state.
            position: the input iterator's state, as values that JSON knows.
            config: the configuration as JSON.
            value: rates the checkpoint, lower is better; None or a number that is not finite is never best.

        Raises:
            CheckpointError: this save, or the one before, failed.
            LostProcessError: it failed because another process of the job is lost.
        """
        step = int(state.step)
        self._wait()
        if step in self._manager.all_steps():
            return
        items: dict[str, Any] = {
            "parameters": ocp.args.StandardSave(state.parameters),
            "ema": ocp.args.StandardSave(state.ema),
            "optimizer": ocp.args.StandardSave(state.optimizer),
            "position": ocp.args.JsonSave(position),
            "config": ocp.args.JsonSave(json.loads(config)),
        }
        self._values[step] = None
        if value is not None and math.isfinite(value):
            self._values[step] = float(value)
            items["measured"] = ocp.args.JsonSave({"value": float(value)})
        self._saving = step
        try:
            if not self._manager.all_steps():
                self._frozen.save(state.frozen_params)
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as e:
            raise self._failed(e) from e

    def check(self) -> None:
        """Looks whether a save has failed, without waiting for a save in progress.

        Raises:
            CheckpointError: a save has failed.
            LostProcessError: it failed because another process of the job is lost.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._wait()

    def check_space(self, state: Saved) -> None:
        """Compares the space that checkpoints need with the free space of the disk.

        Half-written checkpoints of killed runs are removed first. Warns if there is no room for all checkpoints that
        will lie there at once: those that stay, and the next.

        Raises:
            CheckpointError: there is no room for one checkpoint.
        """
        self._remove_partial()
        there = len(self._manager.all_steps())
        one = sum(leaf.nbytes for leaf in jax.tree.leaves((state.parameters, state.ema, state.optimizer)))
        once = 0 if there else sum(leaf.nbytes for leaf in jax.tree.leaves(state.frozen_params))
        free = shutil.disk_usage(self.folder).free
        found = f"{self.folder}: {_size(free)} free, a checkpoint takes about {_size(one)}"
        if once:
            found += f", frozen parameters {_size(once)} once"
        if free < SMALLEST_SHARE * (one + once):
            raise CheckpointError(f"{found}; make room before training begins")
        more = max(1, self._most + 1 - there)
        if free < once + more * one:
            self._warn(f"{found}, and {more} more will lie there at once; training stops when the disk is full")

    def save_for_sampling(self, step: int, parameters: Parameters, frozen_params: Parameters, config: str) -> None:
        """Writes a checkpoint that can be sampled from but not continued, as the first of its folder.

        Args:
            step: step that the parameters come from.
            parameters: the averaged parameters.
            frozen_params: the other parameters of the network.
            config: the configuration that rebuilds the model, as JSON.
        """
        self._saving = step
        self._frozen.save(frozen_params)
        items = ocp.args.Composite(ema=ocp.args.StandardSave(parameters), config=ocp.args.JsonSave(json.loads(config)))
        self._manager.save(step, args=items)

    def restore(self, abstract: State) -> tuple[State, Any]:
        """The newest state that can be read, placed as `abstract` says, and the input position that belongs to it.

        Newer checkpoints, which could not be read, are moved to `RunDir.damaged`: the run will write their steps again.

        Raises:
            CheckpointError: none can be read, or none fits the configuration.
        """
        items = ocp.args.Composite(
            parameters=ocp.args.StandardRestore(abstract.parameters),
            ema=ocp.args.StandardRestore(abstract.ema),
            optimizer=ocp.args.StandardRestore(abstract.optimizer),
            position=ocp.args.JsonRestore(),
        )
        step, found = self._newest("this configuration", lambda step: self._read(step, items))
        with first_process_first("damaged checkpoints"):
            for newer in self._unreadable if is_first() else ():
                self.damaged_folder.mkdir(exist_ok=True)
                shutil.rmtree(self.damaged_folder / str(newer), ignore_errors=True)
                shutil.move(self.folder / str(newer), self.damaged_folder / str(newer))
        if self._unreadable:
            self._manager.reload()
            self._unreadable.clear()
        counter = place(jax.numpy.asarray(step, jax.numpy.int32), abstract.step.sharding)
        frozen_params = self._frozen.restore(abstract.frozen_params)
        state: Any = dataclasses.replace(
            abstract,  # type: ignore[type-var]
            step=counter,
            parameters=found["parameters"],
            frozen_params=frozen_params,
            ema=found["ema"],
            optimizer=found["optimizer"],
        )
        return state, found["position"]

    def config(self, step: int | None = None) -> str:
        """The configuration of a checkpoint as JSON; of the newest that can be read if `step` is None."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return json.dumps(self._newest("any", lambda s: self._read(s, items), step)[1]["config"])

    def averaged_parameters(
        self, functional: Functional, mesh: jax.sharding.Mesh, step: int | None = None, *, cast_kernels: bool = False
    ) -> Parameters:
        """All parameters of the network, averages of the trained ones, read straight to their devices.

        Args:
            functional: the network.
            mesh: devices that hold the parameters.
            step: the checkpoint; None stands for the newest that can be read.
            cast_kernels: read kernels in the type that they are multiplied in (`Functional.compute_dtypes`).

        Raises:
            CheckpointError: the checkpoint does not fit the network, or cannot be read.
        """
        types = functional.compute_dtypes if cast_kernels else {}
        shardings = parameter_shardings(functional.logical_axes, functional.shapes, mesh)
        abstract = {
            name: jax.ShapeDtypeStruct(s.shape, types.get(name, s.dtype), sharding=shardings[name])
            for name, s in functional.shapes.items()
        }
        names = self._frozen.names()
        ema = {name: s for name, s in abstract.items() if name not in names}
        items = ocp.args.Composite(ema=ocp.args.StandardRestore(ema))
        missing = "" if names else f" ({self.frozen_folder}, which would hold frozen parameters, is not there)"
        found = self._newest(f"its configuration{missing}", lambda s: self._read(s, items), step)[1]
        return {**found["ema"], **self._frozen.restore({name: abstract[name] for name in names if name in abstract})}

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: the last save failed.
            LostProcessError: it failed because another process of the job is lost.
        """
        self._wait()
        try:
            self._manager.close()
        except Exception as e:
            raise self._failed(e) from e

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            raise self._failed(e) from e
        self._saving = None

    def _failed(self, error: Exception) -> CheckpointError | LostProcessError:
        """The error for a save that failed; its half-written files are removed, as the disk may be full.

        If processes cannot reach each other, the next start removes them: the files may be those of a live process.
        """
        step, self._saving = self._saving, None
        if lost := lost_process_behind(error):
            return lost
        self._remove_partial()
        free = shutil.disk_usage(self.folder).free
        self._manager.reload()
        kept = sorted(self._manager.all_steps())
        return CheckpointError(
            f"{self.folder / str(step)}: cannot be saved: {reason_of(error)}. Its half-written files are removed, "
            f"{_size(free)} are free. Earlier checkpoints are as they were "
            f"({', '.join(map(str, kept)) or 'there are none'}); once the cause is gone, the same command continues"
        )

    def _remove_partial(self) -> None:
        if not is_first():
            return
        for folder in (self.folder, self.frozen_folder.parent):
            for partial in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(partial, ignore_errors=True)

    def _write_digests(self) -> None:
        assert self._saving is not None
        (folder,) = self.folder.glob(f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*")
        write_checkpoint_digests(folder, self._run_dir.checkpoint_digests(folder), self._saving)

    def _read(self, step: int, items: ocp.args.Composite) -> Any:
        folder = self.folder / str(step)
        require_checkpoint_intact(folder, self._run_dir.checkpoint_digests(folder), step, items.keys())
        return self._manager.restore(step, args=items)

    def _newest(self, what: str, read: Callable[[int], Found], only: int | None = None) -> tuple[int, Found]:
        """The newest step that can be read, or only the given one, and the result of `read`.

        A checkpoint that does not fit the configuration cannot be told from a damaged one, but then the ones before do
        not fit either: the error is that of the newest.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if only is None else [only]
        if not steps:
            raise CheckpointError(f"{self.folder}: no complete checkpoint found; train first, with this workdir")
        errors: list[Exception] = []
        for step in steps:
            try:
                found = read(step)
            except Exception as e:  # orbax and tensorstore raise ValueError, KeyError, OSError, or Exception itself
                if lost := lost_process_behind(e):
                    raise lost from e
                if not others_agree(f"checkpoint {step} cannot be read"):
                    raise CheckpointError(
                        f"{self.folder / str(step)}: cannot be read by this process, but by others ({e}); all hosts "
                        "must share the folder. If the checkpoint is damaged, move it away and start all again"
                    ) from e
                errors.append(e)
                continue
            if errors:
                self._unreadable.update(s for s in steps if s > step)
                self._warn(
                    f"{self.folder / str(steps[0])} is damaged ({reason_of(errors[0])}); going back to step {step}"
                )
            return step, found
        raise CheckpointError(
            f"{self.folder / str(steps[0])}: does not fit {what}, or is damaged: {reason_of(errors[0])}"
        ) from errors[0]


def _size(count: float) -> str:
    """`1.50 GB`, `300 kB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.0f} kB"
