"""The training loop: fetch, step, log, save. It ends at the last step or at a signal, with a checkpoint either way."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genaffect_jax.checkpoints.environment import keep_environment
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DType, TrainConfig
from genaffect_jax.errors import DataError
from genaffect_jax.io.output import print_plainly
from genaffect_jax.parallel.chips import peak_flops
from genaffect_jax.parallel.distributed import first_process_first, is_first
from genaffect_jax.parallel.environment import describe_environment
from genaffect_jax.parallel.xla import deterministic
from genaffect_jax.training.metric_log import TrainingLog, read_rows
from genaffect_jax.training.nonfinite import SKIPPED, NonFiniteGuard
from genaffect_jax.training.optimizer import learning_rate, make_optimizer
from genaffect_jax.training.profiler import StepProfile
from genaffect_jax.training.repetition import unmeasured
from genaffect_jax.training.state import TrainState, abstract_state, create_state
from genaffect_jax.training.step import device_batch, make_train_step
from genaffect_jax.training.task import Task

# Steps that may be dispatched to the devices and not be done.
IN_FLIGHT = 4


def fit(task: Task, config: TrainConfig, mesh: Mesh, run_dir: RunDir, console: Console) -> bool:
    """Trains until `config.steps`, or until SIGINT, SIGTERM or SIGHUP, and saves a checkpoint.

    A run folder that holds checkpoints is continued from the newest: step count, parameters, average, optimizer and
    input position. Several processes call this in step; process 0 alone writes logs, and a signal to any of them ends
    all after the same step.

    With `config.deterministic`, all programs are made inside `parallel.xla.deterministic`, and the environment is
    recorded when the run begins and compared when it continues (`checkpoints.environment`).

    Returns:
        True if the run is complete, False if a signal ended it early.

    Raises:
        ConfigError: a deterministic run continues in another environment, or its step cannot be deterministic.
        TrainingError: `max_consecutive_skips` consecutive steps had a non-finite loss or gradient.
        CheckpointError: the folder's checkpoint does not fit the configuration, or a checkpoint cannot be saved.
        DataError: a batch cannot be made; the steps before it are saved.
    """
    with deterministic(config.deterministic):
        return _fit(task, config, mesh, run_dir, console)


def _fit(task: Task, config: TrainConfig, mesh: Mesh, run_dir: RunDir, console: Console) -> bool:
    optimizer = make_optimizer(config)
    rate = learning_rate(config)
    checkpoints = Checkpoints(
        run_dir.path,
        config.keep_checkpoints,
        lambda message: print_plainly(console, f"warning: {message}"),
        config.keep_best,
    )
    state = _begin_or_continue(task, config, optimizer, mesh, checkpoints, console)
    first = step = int(state.step)
    if step >= config.steps:
        task.batches.close()
        checkpoints.close()
        return True
    _keep_environment(config, mesh, run_dir, step, console)
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
    log = TrainingLog(run_dir, first, writes=is_first())
    profile = StepProfile(run_dir.profile, config.profile_at if is_first() else 0)
    interval = _Interval(NonFiniteGuard(config.max_consecutive_skips))
    measured: dict[str, float] = {}

    def save() -> None:
        value = None if task.probe is None else measured.get(task.probe.rating)
        checkpoints.save(state, task.batches.get_state(), task.config, value)

    with (
        checkpoints,
        closing(log),
        closing(task.batches),
        closing(profile),
        _progress(console, first, config.steps) as show,
        _stop_signal() as stopped,
    ):
        while step < config.steps and not stopped(step):
            profile.before(step + 1, state)
            checkpoints.check()
            try:
                batch = next(task.batches)
            except DataError:
                # Saves what was learned; the position is that of the batch that failed. Of several processes the
                # others do not know of the error, and saving takes all.
                if step > first and jax.process_count() == 1:
                    measured = {}
                    save()
                raise
            state, metrics = train_step(state, task.frozen_components, device_batch(batch, mesh))
            step += 1
            interval.add(metrics)
            if profile.after(step, metrics):
                console.print(f"profile of steps {config.profile_at} to {step}: {run_dir.profile}")
                interval.restart(step)
            if step == first + 1:  # this step was compiled: its time says nothing about the rate
                interval.restart(step)

            saves = step % config.checkpoint_every == 0
            measured = {}
            if task.probe is not None and config.probe_every and (saves or step % config.probe_every == 0):
                jax.block_until_ready(metrics)
                with interval.paused():
                    measured = task.probe.measure(state.averaged)

            means: dict[str, float] = {}
            if interval.pending and (step % config.log_every == 0 or step == config.steps):
                means, seconds = interval.means(step, task.sparse_terms)
                means["learning_rate"] = float(rate(step - 1))
                means.update(_rates(task, len(interval.pending), seconds, config.compute_dtype, mesh))
            if means or measured:
                log.numbers(step, {**means, **measured})
            if means:
                show(step, means)
                interval.restart()
            if task.probe is not None and measured and is_first():
                task.probe.report(read_rows(run_dir.metrics), config.steps, console)

            if config.sample_every and step % config.sample_every == 0 and step < config.steps:
                log.sheet(step, task.preview(state.averaged))
                _plot(task, run_dir)
                interval.restart(step)
            if saves and step < config.steps:
                save()
        complete = step >= config.steps
        if step > first or checkpoints.latest_step() is None:
            save()
        task.batches.close()  # the preview needs the processors that the workers hold
        _plot(task, run_dir)
        if complete and step > first:
            log.sheet(step, task.preview(state.averaged))
    again = "" if complete else "; stopped, the same command continues"
    written = f"checkpoint written to {checkpoints.folder.name}/{step}"
    console.print(f"step {step} of {config.steps}: {written}{again}", soft_wrap=True)
    return complete


def _begin_or_continue(
    task: Task,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
    console: Console,
) -> TrainState:
    """The state of step 0, or that of the newest checkpoint, with the input set to its position."""
    if checkpoints.latest_step() is None:
        return create_state(task.functional, optimizer, mesh, config.seed, task.initial())
    state, position = checkpoints.restore(abstract_state(task.functional, optimizer, mesh))
    task.batches.set_state(position)
    step = int(state.step)
    console.print(f"{'already finished:' if step >= config.steps else 'continuing at'} step {step} of {config.steps}")
    return state


def _keep_environment(config: TrainConfig, mesh: Mesh, run_dir: RunDir, step: int, console: Console) -> None:
    """Records or compares the environment, and says what is promised."""
    with first_process_first("environment"):
        told = keep_environment(run_dir, config.deterministic, step, describe_environment(mesh))
    if told is not None:
        console.print(told, soft_wrap=True)
    if config.deterministic and (doubt := unmeasured(mesh)) is not None:
        print_plainly(console, f"warning: {doubt}")


class _Interval:
    """The steps since the last row of the log: their metrics, which stay on the devices until they are asked for, and
    their time."""

    def __init__(self, guard: NonFiniteGuard) -> None:
        self.pending: list[dict[str, jax.Array]] = []
        self._guard, self._start = guard, time.perf_counter()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Adds a step. Waits if the host is more than `IN_FLIGHT` steps ahead, so that batches do not pile up on the
        devices."""
        self.pending.append(metrics)
        if len(self.pending) > IN_FLIGHT:
            jax.block_until_ready(self.pending[-1 - IN_FLIGHT])

    def means(self, step: int, sparse_terms: Collection[str]) -> tuple[dict[str, float], float]:
        """Means over the steps up to `step`, and their time in seconds; raises as `NonFiniteGuard.check`."""
        rows = jax.device_get(self.pending)
        self._guard.check(rows, step)
        return _means(rows, sparse_terms), time.perf_counter() - self._start

    def restart(self, unchecked: int | None = None) -> None:
        """Forgets the steps and starts the clock; steps up to `unchecked` go through the guard first."""
        if unchecked is not None:
            self._guard.check(jax.device_get(self.pending), unchecked)
        self._start, self.pending = time.perf_counter(), []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time of the block."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began


def _plot(task: Task, run_dir: RunDir) -> None:
    if task.probe is not None and is_first():
        task.probe.plot(read_rows(run_dir.metrics), run_dir.probe_plot)


def _rates(task: Task, steps: int, seconds: float, dtype: DType, mesh: Mesh) -> dict[str, float]:
    rates = {"images_per_second": steps * task.images_per_step / seconds}
    if task.step_flops is not None:
        rates.update(utilisation(steps * task.step_flops / seconds, dtype, mesh))
    return rates


def utilisation(rate: float, dtype: DType, mesh: Mesh) -> dict[str, float]:
    """`tflops_per_device`, and `model_flops_utilisation` where the devices' peak is known for this type.

    Args:
        rate: operations of the network over all devices, in FLOP/s, without recomputation (Chowdhery et al. 2022,
            arXiv 2204.02311, appendix B).
        dtype: type of the factors of matrix products; the peak is known for bfloat16.
        mesh: the devices.
    """
    each = rate / mesh.size
    peak = peak_flops(mesh.devices.flat[0]) if dtype == "bfloat16" else None
    found = {"tflops_per_device": each / 1e12}
    return found if peak is None else {**found, "model_flops_utilisation": each / peak}


def _means(rows: Sequence[Mapping[str, np.ndarray]], sparse_terms: Collection[str]) -> dict[str, float]:
    """Means over the steps that were not skipped, and the number of skipped steps, if there are any."""
    counted = [row for row in rows if not row[SKIPPED]]
    means = {}
    for name in rows[0]:
        values = np.array([row[name] for row in counted])
        if name in sparse_terms:
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

        def show(step: int, values: dict[str, float]) -> None:
            numbers = f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s"
            bar.update(task, completed=step, numbers=numbers)
            if not console.is_terminal:  # a log file gets plain lines instead of a bar
                seconds = bar.tasks[0].time_remaining
                left = "" if seconds is None else f"  {timedelta(seconds=round(seconds))} left"
                console.print(f"step {step}/{total}  {numbers}{left}")

        yield show


@contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag for the steps to come; a second SIGINT interrupts at once.

    SIGHUP, the end of the terminal, stays ignored where it is (`nohup`). Several processes agree on the step, so each
    must ask after every step. They agree through JAX's preemption service, which listens to SIGTERM from the moment
    that they join; another signal is therefore passed on as a SIGTERM.
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

    caught = [signal.SIGINT] if together else [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield multihost_utils.reached_preemption_sync_point if together else lambda _: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
