"""One of several processes of a training whose network is so small that compiling it takes no time; see test_hosts.

python distributed_worker.py '{"workdir": "DIR", "distributed": {"coordinator_address": "127.0.0.1:1234", ...}, ...}'
"""

import json
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from genaffect_jax import cli
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DistributedConfig, MeshConfig, TrainConfig
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.base import Example
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.layers import Linear
from genaffect_jax.parallel.distributed import gathered
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import batch_shard
from genaffect_jax.training.loop import fit
from genaffect_jax.training.task import Task

SIDE, PEOPLE, EXPRESSIONS = 4, 6, 4


class Noise:
    """Images of noise: every one is different from every other."""

    width = 2

    def __init__(self):
        self.examples = [
            Example(f"p{person}", str(number), np.array([person, number], np.float32))
            for person in range(PEOPLE)
            for number in range(EXPRESSIONS)
        ]

    def load(self, index):
        return np.random.default_rng(index).standard_normal((SIDE, SIDE, 3)).astype(np.float32)


class Slowly:
    """Batches that come no faster than one in `pause` seconds, so that there is time to disturb the training."""

    def __init__(self, loader, pause):
        self.loader, self.pause = loader, pause
        self.get_state, self.set_state, self.close = loader.get_state, loader.set_state, loader.close

    def __next__(self):
        time.sleep(self.pause)
        return next(self.loader)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layer = Linear(SIDE * SIDE * 3, 16, axes=("embed", "mlp"), rngs=rngs)
        self.out = Linear(16, SIDE * SIDE * 3, axes=("mlp", "embed"), rngs=rngs)


def loss(model, frozen_components, batch, key):
    found = model.out(jnp.tanh(model.layer(batch["reference"].reshape(-1, 1, SIDE * SIDE * 3))))
    error = (found - batch["target"].reshape(-1, 2, SIDE * SIDE * 3)) ** 2
    return {"loss": (jnp.sum(error), jnp.float32(error.size))}


def train(workdir, console, steps, mesh=(), pause=0.0, checkpoint_every=5):
    """Trains into a run folder and returns whether all steps are done."""
    config = TrainConfig(
        steps=steps,
        batch_size=8,
        warmup_steps=1,
        schedule="constant",
        log_every=1,
        sample_every=3,
        checkpoint_every=checkpoint_every,
    )
    mesh = make_mesh(MeshConfig(*mesh))
    shard_index, num_shards = batch_shard(mesh)
    source = Noise()
    loader = make_loader(
        source,
        [f"p{person}" for person in range(PEOPLE)],
        batch_size=8,
        expressions_per_set=2,
        seed=0,
        workers=0,
        shard_index=shard_index,
        num_shards=num_shards,
    )
    workdir.mkdir(parents=True, exist_ok=True)

    def preview(parameters):
        shade = 100 + 100 * np.tanh(np.asarray(gathered(parameters)["out.kernel"]).mean())
        return np.full((8, 8, 3), shade, np.uint8)

    task = Task(
        functional=Functional(Network),
        loss=loss,
        frozen_components={},
        batches=Slowly(loader, pause),
        images_per_step=16,
        preview=preview,
        config="{}",
    )
    return fit(task, config, mesh, RunDir(workdir), console)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    folder, distributed = Path(given.pop("workdir")), DistributedConfig(**given.pop("distributed"))
    meshes = given.pop("meshes", [[]])

    def work(console):
        return all(train(folder / "x".join(map(str, mesh)), console, mesh=mesh, **given) for mesh in meshes)

    sys.exit(cli.run(work, distributed))
