"""Batches made ahead: their order and position are those of the input, errors keep their step, and no thread stays."""

import itertools
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from support.training_runs import QUIET, Numbered, assert_equal_ends, task, with_train

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import DataError
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import batch_sharding
from genaffect_jax.training.loop import fit
from genaffect_jax.training.prefetch import Prefetched

PATIENCE = 30


class Counted:
    """Batches that hold their number; batch `broken` cannot be made."""

    def __init__(self, broken=None):
        self.made, self.broken, self.closed, self.threads = 0, broken, 0, set()

    def __next__(self):
        self.threads.add(threading.current_thread())
        if self.made == self.broken:
            raise DataError(f"batch {self.made} is broken")
        self.made += 1
        return {"number": np.full(8, self.made - 1, np.int32)}

    def get_state(self):
        return {"next": self.made}

    def set_state(self, state):
        self.made = state["next"]

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def numbers(stream, count):
    return [int(batch["number"][0]) for batch in itertools.islice(iter(stream.__next__, None), count)]


def wait_until(holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_cut_over_the_devices_and_are_made_by_another_thread(mesh):
    batches = Counted()
    stream = Prefetched(batches, mesh)
    batch = next(stream)
    assert isinstance(batch["number"], jax.Array)
    assert batch["number"].sharding == batch_sharding(mesh)
    assert numbers(stream, 5) == [1, 2, 3, 4, 5]
    assert threading.current_thread() not in batches.threads
    stream.close()


def test_the_input_is_read_ahead_by_the_stated_number_and_no_further(mesh):
    batches = Counted()
    stream = Prefetched(batches, mesh, ahead=3)
    assert batches.made == 0
    assert numbers(stream, 2) == [0, 1]
    wait_until(lambda: batches.made == 2 + 3 + 1)  # three wait, and one is in the making
    time.sleep(0.05)
    assert batches.made == 6
    stream.close()
    with pytest.raises(ValueError, match="ahead=0"):
        Prefetched(batches, mesh, ahead=0)


def test_the_position_is_that_after_the_batch_handed_out_last(mesh):
    batches = Counted()
    stream = Prefetched(batches, mesh)
    assert stream.get_state() == {"next": 0}
    for expected in range(4):
        assert numbers(stream, 1) == [expected]
        wait_until(lambda expected=expected: batches.made >= expected + 3)
        assert stream.get_state() == {"next": expected + 1}
    stream.set_state({"next": 2})  # while the thread is ahead
    assert stream.get_state() == {"next": 2}
    assert numbers(stream, 2) == [2, 3]
    stream.close()
    assert stream.get_state() == {"next": 4}
    assert numbers(stream, 2) == [4, 5]  # what was made ahead is made again, and nothing is skipped
    stream.close()


def test_an_error_is_raised_by_the_call_that_needs_the_batch_and_the_position_is_that_batchs(mesh):
    batches = Counted(broken=3)
    stream = Prefetched(batches, mesh)
    assert numbers(stream, 1) == [0]
    wait_until(lambda: not stream._thread.is_alive() or batches.made == 3)
    assert numbers(stream, 2) == [1, 2]
    for _ in range(2):  # and by every call after it
        with pytest.raises(DataError, match="batch 3 is broken"):
            next(stream)
        assert stream.get_state() == {"next": 3}
        assert not prefetching()
    batches.broken = None
    assert numbers(stream, 2) == [3, 4]
    stream.close()


@pytest.mark.parametrize("broken", [None, 3, 4])
def test_closing_leaves_no_thread_however_far_it_is(mesh, broken):
    batches = Counted(broken)
    for _ in range(20):
        stream = Prefetched(batches, mesh)
        stream.set_state({"next": 0})
        assert numbers(stream, 1) == [0]
        stream.close()
        assert not prefetching()
    assert batches.closed == 20


@pytest.fixture(scope="module")
def config(tiny_config):
    return with_train(tiny_config, steps=6, checkpoint_every=2, schedule="constant", log_every=50)


@pytest.fixture(scope="module")
def undisturbed(config, mesh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert fit(task(config, Numbered()), config.train, mesh, RunDir(folder), QUIET)
    return folder


class Disturbed(Numbered):
    """Batches of which the fifth meets an event."""

    def __init__(self, event):
        super().__init__()
        self.event = event

    def __next__(self):
        if self.fetched - 100 + 1 == 5:
            self.event()
        return super().__next__()


def test_a_training_learns_the_same_from_batches_made_ahead(config, mesh, undisturbed, tmp_path):
    stream = Prefetched(Numbered(), mesh)
    assert fit(task(config, stream), config.train, mesh, RunDir(tmp_path), QUIET)
    assert not prefetching()
    assert_equal_ends(config, tmp_path, undisturbed)


def test_a_batch_that_cannot_be_made_costs_no_step_before_it(config, mesh, undisturbed, tmp_path):
    def broken():
        raise DataError("p3/joy.png: was readable when the folder was checked, but is no longer")

    stream = Prefetched(Disturbed(broken), mesh)
    with pytest.raises(DataError, match=r"p3/joy\.png"):
        fit(task(config, stream), config.train, mesh, RunDir(tmp_path), QUIET)
    assert not prefetching()
    assert Checkpoints(tmp_path).latest_step() == 4
    assert fit(task(config, Prefetched(Numbered(), mesh)), config.train, mesh, RunDir(tmp_path), QUIET)
    assert_equal_ends(config, tmp_path, undisturbed)


def test_a_signal_ends_training_and_the_thread_and_the_run_continues_exactly(config, mesh, undisturbed, tmp_path):
    stream = Prefetched(Disturbed(lambda: os.kill(os.getpid(), signal.SIGINT)), mesh)
    assert not fit(task(config, stream), config.train, mesh, RunDir(tmp_path), QUIET)
    assert not prefetching()
    assert 2 <= Checkpoints(tmp_path).latest_step() <= 5
    assert fit(task(config, Prefetched(Numbered(), mesh)), config.train, mesh, RunDir(tmp_path), QUIET)
    assert_equal_ends(config, tmp_path, undisturbed)
