"""Worker processes of the data pipeline: how they start and when they end."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_FOR_THE_MAIN_PROCESS = {signal.SIGINT} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())
SHARED_MEMORY = Path("/dev/shm")  # of Linux
# Read by OpenBLAS, MKL and OpenMP when they are loaded.
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def init_worker(*_: object) -> None:
    """Runs first in every worker process; arguments, such as grain's number of the worker, are not used."""
    # Ctrl-C and the end of a terminal reach the whole process group; the main process stops its workers itself.
    for number in _FOR_THE_MAIN_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "a worker process has a parent"

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)  # the parent was killed, so no process will read a result or stop this one

    threading.Thread(target=die_with_parent, daemon=True, name="die-with-parent").start()


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that are started in this block print no traceback at Ctrl-C and use one thread for linear algebra.

    They inherit a blocked SIGINT and SIGHUP, which are not theirs even while they import their modules. In this process
    Ctrl-C takes effect after the block at the latest. Every worker renders or decodes on one core; a pool of BLAS
    threads in each would keep all cores busy with waiting (measured in
    docs/notes/training_speed.md#encoding-images). Settings of the user's environment stay.
    """
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_PROCESS - {signal.SIGINT})
        resource_tracker.ensure_running()  # it unblocks SIGINT when it starts, so it must start before
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_MAIN_PROCESS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        for name in added:
            os.environ.pop(name, None)


def describe_shared_memory() -> str:
    """The place in which workers hand over images, with its size and what is free, for messages about a lack of it."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return "shared memory"
    return f"{SHARED_MEMORY} ({usage.total / 1e6:.1f} MB, {usage.free / 1e6:.1f} MB free)"


class WorkerContext(SpawnContext):
    """Starts the processes of one pool, and can kill them.

    Spawned, not forked: the main process may run JAX's threads.
    """

    def __init__(self) -> None:
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        """A process that is remembered."""
        process = SpawnProcess(*args, **kwargs)
        self.started.append(process)
        return process

    def kill(self) -> None:
        """Kills all processes that were started and have not ended."""
        for process in self.started:
            if process.pid is not None:
                process.kill()


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., object] = init_worker, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, which end with the block: after their tasks, or at once if the block fails.

    A pool that breaks while it starts a process does not know that one (Python 3.11): nobody would end it, and the end
    of the pool would wait for it for ever. Therefore its processes are killed here.
    """
    context = WorkerContext()
    pool = ProcessPoolExecutor(workers, context, initializer=initializer, initargs=initargs)
    try:
        yield pool
    except BaseException:
        context.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def submit(
    pool: Executor, work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> Future[_Result]:
    """`pool.submit`, with the pool's own error when a worker is killed while `submit` starts another one.

    Before Python 3.12 the pool closes its pipes at once, and whoever is starting a process with them gets an OSError.
    `work` may run twice if the system refuses a process the first time.

    Raises:
        BrokenProcessPool: a worker was killed.
        OSError: the system starts no process.
    """
    try:
        return pool.submit(work, *args, **kwargs)
    except OSError:
        return pool.submit(work, *args, **kwargs)  # a broken pool says so
