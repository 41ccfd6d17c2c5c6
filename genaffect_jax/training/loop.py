"""The training loop: fetch, step, log, save; it ends at the last step or at a signal, with a checkpoint either way."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import DType, TrainConfig
from genaffect_jax.errors import DataError
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.parallel.chips import peak_flops
from genaffect_jax.parallel.distributed import is_first
from genaffect_jax.training.denoiser.auxiliary import PREFIX as OPTIONAL
from genaffect_jax.training.denoiser.conditioning_probe import RIGHT
from genaffect_jax.training.denoiser.probe_report import ProbeReport
from genaffect_jax.training.metric_log import TrainingLog
from genaffect_jax.training.nonfinite import SKIPPED, NonFiniteGuard
from genaffect_jax.training.optimizer import learning_rate, make_optimizer
from genaffect_jax.training.profiler import StepProfile
from genaffect_jax.training.state import abstract_state, create_state
from genaffect_jax.training.step import Batch, LossFunction, device_batch, make_train_step

# Steps that may be dispatched and not done.
IN_FLIGHT = 4


class Batches(Protocol):
    """An endless input iterator whose position can be saved and restored exactly."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """What one run trains."""

    functional: Functional
    """The network."""
    loss: LossFunction
    """Its objective."""
    frozen_components: Mapping[str, Any]
    """Arrays that the loss reads but does not train, whole on every device; `{}` if none."""
    batches: Batches
    """Training input."""
    images_per_step: int
    """Target images in one batch over all processes, for the throughput figure."""
    preview: Callable[[Parameters], UInt8[np.ndarray, "H W 3"]]
    """Draws a sample sheet with the averaged weights."""
    config: str
    """The resolved configuration as JSON; saved beside every checkpoint."""
    initial: Callable[[], Parameters] = dict
    """Makes the parameters that do not start at random; called when a run begins, not when it continues."""
    probe: Callable[[Parameters], dict[str, float]] | None = None
    """Measures the conditioning probe of the averaged parameters, every `probe_every` steps and with every checkpoint,
    whose value is the loss with the right conditions; None measures none."""
    step_flops: float | None = None
    """Operations of the network in one step over all devices, without what is computed again; None: not known."""


def fit(task: Task, config: TrainConfig, mesh: Mesh, workdir: Path, console: Console) -> bool:
    """Trains until `config.steps`, or until SIGINT/SIGTERM, and saves a checkpoint.

    A run folder that holds checkpoints is continued from the newest: step count, parameters, average,
    optimizer and input position. Several processes call this in step; process 0 alone writes logs, and a signal to any
    of them ends all after the same step.

    Returns:
        True if the run is complete, False if a signal ended it early.

    Raises:
        TrainingError: `max_consecutive_skips` steps in a row had a loss or gradients that are not finite.
        CheckpointError: the folder's checkpoint does not fit the configuration, or one cannot be saved.
        DataError: a batch cannot be made; what was learned until then is saved.
    """
    optimizer = make_optimizer(config)
    rate = learning_rate(config)
    checkpoints = Checkpoints(
        workdir,
        config.keep_checkpoints,
        lambda message: console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True),
        config.keep_best,
    )
    if checkpoints.latest_step() is None:
        state = create_state(task.functional, optimizer, mesh, config.seed, task.initial())
    else:
        state, position = checkpoints.restore(abstract_state(task.functional, optimizer, mesh))
        task.batches.set_state(position)
        if int(state.step) >= config.steps:
            console.print(f"already finished: step {int(state.step)} of {config.steps}")
            task.batches.close()
            checkpoints.close()
            return True
        console.print(f"continuing at step {int(state.step)} of {config.steps}")
    checkpoints.check_space(state)
    train_step = make_train_step(
        task.functional,
        task.loss,
        optimizer,
        ema_decay=config.ema_decay,
        seed=config.seed,
        mesh=mesh,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    first = step = int(state.step)
    log = TrainingLog(workdir, first, writes=is_first())
    probe_report = ProbeReport(workdir, config.steps, console, watches=is_first())
    guard = NonFiniteGuard(config.max_consecutive_skips)
    profile = StepProfile(workdir / "profile", config.profile_at if is_first() else 0)
    pending: list[dict[str, jax.Array]] = []
    measured: dict[str, float] = {}
    interval_start, compiled = time.perf_counter(), False

    with (
        checkpoints,
        closing(log),
        closing(task.batches),
        closing(profile),
        _progress(console, first, config.steps) as report,
        _stop_signal() as stopped,
    ):
        while step < config.steps and not stopped(step):
            profile.before(step + 1, state)
            checkpoints.check()
            try:
                batch = next(task.batches)
            except DataError:
                # Nothing that was learned is lost; the position is that of the batch that failed. Of several processes
                # the others do not know, and saving takes all.
                if step > first and jax.process_count() == 1:
                    checkpoints.save(state, task.batches.get_state(), task.config)
                raise
            state, metrics = train_step(state, task.frozen_components, device_batch(batch, mesh))
            pending.append(metrics)
            step += 1
            # The host runs ahead of the devices, but not so far that batches pile up on them.
            if len(pending) > IN_FLIGHT:
                jax.block_until_ready(pending[-1 - IN_FLIGHT])
            if profile.after(step, metrics):
                console.print(f"profile of steps {config.profile_at} to {step}: {workdir / 'profile'}")
                guard.check(jax.device_get(pending), step)
                interval_start, pending = time.perf_counter(), []
            if not compiled:
                guard.check(jax.device_get(pending), step)
                interval_start, compiled, pending = time.perf_counter(), True, []
            measured = {}
            saves = step % config.checkpoint_every == 0
            if task.probe is not None and config.probe_every and (saves or step % config.probe_every == 0):
                jax.block_until_ready(metrics)
                began = time.perf_counter()
                measured = task.probe(state.averaged)
                interval_start += time.perf_counter() - began  # no part of the training's rate
            means: dict[str, float] = {}
            if pending and (step % config.log_every == 0 or step == config.steps):
                found = jax.device_get(pending)
                guard.check(found, step)
                means = _means(found)
                seconds = time.perf_counter() - interval_start
                means["learning_rate"] = float(rate(step - 1))
                means["images_per_second"] = len(pending) * task.images_per_step / seconds
                if task.step_flops is not None:
                    means.update(utilisation(len(pending) * task.step_flops / seconds, config.compute_dtype, mesh))
            if means or measured:
                log.numbers(step, {**means, **measured})
            if means:
                report(step, means)
                interval_start, pending = time.perf_counter(), []
            if measured:
                probe_report.check()
            if config.sample_every and step % config.sample_every == 0 and step < config.steps:
                log.sheet(step, task.preview(state.averaged))
                probe_report.draw()
                guard.check(jax.device_get(pending), step)
                interval_start, pending = time.perf_counter(), []
            if saves and step < config.steps:
                checkpoints.save(state, task.batches.get_state(), task.config, measured.get(RIGHT))
        complete = step >= config.steps
        if step > first or checkpoints.latest_step() is None:
            checkpoints.save(state, task.batches.get_state(), task.config, measured.get(RIGHT))
        task.batches.close()  # the preview needs the processors that the workers hold
        probe_report.draw()
        if complete and step > first:
            log.sheet(step, task.preview(state.averaged))
    again = "" if complete else "; stopped, the same command continues"
    console.print(f"step {step} of {config.steps}: checkpoint written to {checkpoints.folder.name}/{step}{again}")
    return complete


def utilisation(rate: float, dtype: DType, mesh: Mesh) -> dict[str, float]:
    """`tflops_per_device`, and `model_flops_utilisation` where the devices' peak is known for this type.

    Args:
        rate: operations of the network over all devices, in FLOP/s, without what is computed again (Chowdhery et al.
            2022, arXiv 2204.02311, appendix B).
        dtype: type of what is multiplied; peaks are known of bfloat16.
        mesh: the devices.
    """
    each = rate / mesh.size
    peak = peak_flops(mesh.devices.flat[0]) if dtype == "bfloat16" else None
    found = {"tflops_per_device": each / 1e12}
    return found if peak is None else {**found, "model_flops_utilisation": each / peak}


def _means(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Means over the steps that changed something, and the number of those that did not, if there are any."""
    counted = [row for row in rows if not row[SKIPPED]]
    means = {}
    for name in rows[0]:
        values = np.array([row[name] for row in counted])
        if name.startswith(OPTIONAL):  # nan where no example counted
            values = values[~np.isnan(values)]
        means[name] = float(np.mean(values)) if len(values) else math.nan
    del means[SKIPPED]
    skipped = len(rows) - len(counted)
    return {**means, "skipped_steps": float(skipped)} if skipped else means


@contextmanager
def _progress(console: Console, first: int, total: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        task = bar.add_task("", total=total, completed=first, numbers="compiling")

        def report(step: int, values: dict[str, float]) -> None:
            numbers = f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s"
            bar.update(task, completed=step, numbers=numbers)
            if not console.is_terminal:  # a log file gets plain lines instead of a bar
                seconds = bar.tasks[0].time_remaining
                left = "" if seconds is None else f"  {timedelta(seconds=round(seconds))} left"
                console.print(f"step {step}/{total}  {numbers}{left}")

        yield report


@contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns the first SIGINT or SIGTERM into a flag for the steps to come; a second SIGINT interrupts at once.

    Several processes agree on the step, so each must ask after every step. JAX's preemption service lets them: it
    listens to SIGTERM from the moment that they join, so a SIGINT is made one.
    """
    together = jax.process_count() > 1
    received: list[int] = []
    main_process = os.getpid()

    def handle(number: int, _frame: object) -> None:
        if os.getpid() != main_process:
            return
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        if together:
            os.kill(main_process, signal.SIGTERM)

    caught = (signal.SIGINT,) if together else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield multihost_utils.reached_preemption_sync_point if together else lambda _: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
