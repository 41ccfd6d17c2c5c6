"""How worker processes start: with one thread for linear algebra, and without a Ctrl-C of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from genaffect_jax.data.worker_processes import starting_workers

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
