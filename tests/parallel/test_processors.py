"""The number of processors, on systems that tell which of them a process may use and on others."""

import os

from genaffect_jax.parallel.processors import usable_processors


def test_only_processors_that_the_process_may_use_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert usable_processors() == 3


def test_without_affinity_all_processors_of_the_machine_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_processors() == 7
