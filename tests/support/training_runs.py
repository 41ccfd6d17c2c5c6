"""Trainings of a few steps: their batches, their task, and what their run folder holds."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import MeshConfig, to_json
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.layers import Linear
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.task import Task

QUIET = Console(file=open(os.devnull, "w"))  # noqa: SIM115 (lives as long as the tests)


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Interrupting:
    """Batches that send SIGINT to this process when the third is fetched."""

    def __init__(self, number):
        self.fetched, self.number = 0, number

    def __next__(self):
        self.fetched += 1
        if self.fetched == 3:
            os.kill(os.getpid(), self.number)
        rng = np.random.default_rng(self.fetched)
        return {
            "reference": rng.standard_normal((8, 1, 8, 8, 4), np.float32),
            "target": rng.standard_normal((8, 2, 8, 8, 4), np.float32),
            "expression": rng.random((8, 2, 40), np.float32),
        }

    def get_state(self):
        return {"fetched": self.fetched}

    def set_state(self, state):
        self.fetched = state["fetched"]

    def close(self):
        pass


class Numbered(Interrupting):
    """Batches of which the targets say how many were fetched."""

    def __init__(self):
        super().__init__(None)
        self.fetched = 100  # past the third, which interrupts

    def __next__(self):
        batch = super().__next__()
        return {**batch, "target": np.full_like(batch["target"], self.fetched - 100)}


class Small(nnx.Module):
    """A network that compiles in no time.

    Its kernels are cut over both axes of a mesh, and wide enough that orbax keeps their shards in files of their own.
    """

    def __init__(self, rngs, width=2048):
        self.up = Linear(8, width, axes=("embed", "mlp"), rngs=rngs)
        self.down = Linear(width, 8, axes=("mlp", "embed"), rngs=rngs)


def distance(model, frozen_components, batch, key):
    rows = (batch[name].reshape(8, -1, 8) for name in ("reference", "target"))  # any eight numbers
    reference, target = (rows.mean(1) for rows in rows)
    error = (model.down(model.up(reference)) - target) ** 2
    return {"loss": (jnp.sum(error), jnp.float32(error.size))}


def task(config, batches, loss=distance, network=Small):
    """What `fit` trains where the promise is the loop's or the run folder's and any network will do."""
    return Task(
        functional=Functional(network),
        loss=loss,
        frozen_components={},
        batches=batches,
        images_per_step=16,
        preview=lambda _: np.zeros((8, 8, 3), np.uint8),
        config=to_json(config),
    )


def final_state(config, workdir, mesh=None):
    """State and input position of the newest checkpoint of a run of `task`."""
    abstract = abstract_state(Functional(Small), make_optimizer(config.train), mesh or make_mesh(MeshConfig()))
    return Checkpoints(workdir).restore(abstract)


def assert_equal_ends(config, workdir, expected):
    """Two runs of `task` ended with the same state, to the bit, and at the same input position."""
    (state, position), (other, other_position) = (final_state(config, w) for w in (workdir, expected))
    assert position == other_position
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
