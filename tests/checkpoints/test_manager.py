"""Saves that fail because a process of the job is gone: not the disk's fault, and a retry helps."""

import jax
import jax.numpy as jnp
import pytest

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.errors import CheckpointError, LostProcessError
from genaffect_jax.training.state import TrainState


def state(step: int) -> TrainState:
    one = {"w": jnp.zeros(1)}
    return TrainState(jnp.int32(step), one, {}, one, one)


def failing(messages):
    """A function that fails with an error and its causes, as orbax wraps what JAX raises."""

    def fail(*_, **__):
        error = None
        for message in reversed(messages):
            cause, error = error, jax.errors.JaxRuntimeError(message)
            error.__cause__ = cause
        raise error

    return fail


@pytest.mark.parametrize(
    "messages",
    [
        ["UNKNOWN: Gloo AllGather failed: Connection closed by peer"],
        ["cannot be written", "UNAVAILABLE: failed to connect to all addresses"],
    ],
)
@pytest.mark.parametrize("failure", ["save", "wait_until_finished"])
def test_a_save_that_fails_because_a_process_is_lost_says_so(tmp_path, monkeypatch, messages, failure):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, failure, failing(messages))
    with pytest.raises(LostProcessError, match=r"another process of the job is lost.*start all processes again"):
        checkpoints.save(state(1), {}, "{}")


def test_another_failure_of_the_runtime_stays_a_failed_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "save", failing(["INTERNAL: something else"]))
    with pytest.raises(CheckpointError, match="cannot be saved: INTERNAL: something else"):
        checkpoints.save(state(1), {}, "{}")
