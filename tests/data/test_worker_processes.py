"""How worker processes start, with one thread for linear algebra and no Ctrl-C of their own; one error if killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess

import pytest

from genaffect_jax.data.worker_processes import WorkerContext, starting_workers, submit, worker_pool

REPORT = """
import os, signal
print(os.environ["OPENBLAS_NUM_THREADS"], signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no masks of signals")
def test_processes_inherit_one_thread_and_a_blocked_ctrl_c_and_this_process_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # a user's choice
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with starting_workers():
        found = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True).stdout
        assert os.environ["OMP_NUM_THREADS"] == "7"
    assert found.split() == ["1", "True"]
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process by its number")
def test_a_worker_killed_while_another_one_starts_is_the_pools_own_error() -> None:
    class Context(WorkerContext):
        """Whose second process starts after the first was killed and the pool has noticed it."""

        def Process(self, *args: object, **kwargs: object) -> SpawnProcess:  # noqa: N802
            process = super().Process(*args, **kwargs)
            if len(self.started) == 2:
                os.kill(self.started[0].pid, signal.SIGKILL)
                time.sleep(1.0)  # pools of Python 3.12 and later wait for `submit`
            return process

    context = Context()
    pool = ProcessPoolExecutor(2, context)
    with pytest.raises(BrokenProcessPool):
        # One of them starts the second process while the pool closes, or finds it closed.
        [task.result() for task in [submit(pool, time.sleep, 60) for _ in range(3)]]
    context.kill()
    pool.shutdown(cancel_futures=True)
    assert len(context.started) == 2


def test_a_block_that_fails_does_not_wait_for_its_workers() -> None:
    def fail() -> None:
        with worker_pool(2) as pool:
            for _ in range(2):
                submit(pool, time.sleep, 600)
            time.sleep(0.5)
            raise ValueError("planted")

    began = time.monotonic()
    with pytest.raises(ValueError, match="planted"):
        fail()
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()
