"""Trainings of a few steps: their batches, their task, and what their run folder holds."""

import dataclasses
import json
import os

import numpy as np
from rich.console import Console

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import MeshConfig, to_json
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.task import Task

QUIET = Console(file=open(os.devnull, "w"))  # noqa: SIM115 (lives as long as the tests)


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def final_state(config, workdir):
    denoiser, _ = build_networks(config.model)
    mesh = make_mesh(MeshConfig())
    return Checkpoints(workdir).restore(abstract_state(denoiser, make_optimizer(config.train), mesh))


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


def task(config, batches, loss=None):
    denoiser, autoencoder = build_networks(config.model)
    return Task(
        functional=denoiser,
        loss=loss or make_denoiser_loss(config.flow, autoencoder),
        frozen_components={},
        batches=batches,
        images_per_step=16,
        preview=lambda _: np.zeros((8, 8, 3), np.uint8),
        config=to_json(config),
    )
