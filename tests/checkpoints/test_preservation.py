"""The checkpoint that measured best stays beside the newest, and can be sampled from."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax import sample
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import MeshConfig, to_json
from genaffect_jax.errors import CheckpointError
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import TrainState, create_state


@pytest.fixture
def state():
    """One number that trains."""
    return TrainState(jnp.int32(0), {"w": jnp.zeros(1)}, {}, {"w": jnp.zeros(1)}, {"m": jnp.zeros(1)})


def save(workdir, state, config, values, **keep):
    """Checkpoints of steps 1, 2, ... whose averages are their steps."""
    checkpoints = Checkpoints(workdir, **keep)
    for step, value in values.items():
        ema = {name: jnp.full_like(array, step) for name, array in state.ema.items()}
        counter = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
        checkpoints.save(dataclasses.replace(state, step=counter, ema=ema), {"at": step}, to_json(config), value)
    checkpoints.close()


def steps(workdir):
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("values", "keep", "stay", "best"),
    [
        ([0.5, 0.2, 0.3, 0.4], {"keep": 1, "keep_best": 1}, [2, 4], 2),
        ([0.5, 0.2, 0.3, 0.4], {"keep": 1, "keep_best": 2}, [2, 3, 4], 2),
        ([0.5, 0.2, 0.3, 0.4], {"keep": 2, "keep_best": 0}, [3, 4], 3),
        ([0.5, 0.2, 0.3, 0.1], {"keep": 2, "keep_best": 1}, [3, 4], 4),  # the best is one of the newest
        ([0.5, None, math.nan, None], {"keep": 1, "keep_best": 1}, [1, 4], 1),  # not measured: never the best
        ([-1.0, math.inf, 0.1, -math.inf], {"keep": 1, "keep_best": 1}, [1, 4], 1),
    ],
)
def test_the_best_stay_beside_the_newest(tiny_config, state, tmp_path, values, keep, stay, best):
    values = dict(enumerate(values, 1))
    first = {step: value for step, value in values.items() if step < 3}
    save(tmp_path, state, tiny_config, first, **keep)  # what is best must be known again in another process
    save(tmp_path, state, tiny_config, {s: v for s, v in values.items() if s not in first}, **keep)
    assert steps(tmp_path) == stay
    assert Checkpoints(tmp_path).step("best") == best


def test_without_a_measured_checkpoint_there_is_no_best(tiny_config, state, tmp_path):
    save(tmp_path, state, tiny_config, {1: None, 2: None, 3: None}, keep=1, keep_best=1)
    assert steps(tmp_path) == [3]
    with pytest.raises(CheckpointError, match=r"no checkpoint has a value, so none is the best \(has \[3\]\)"):
        Checkpoints(tmp_path).step("best")


def test_a_damaged_value_hides_no_checkpoint(tiny_config, state, tmp_path):
    save(tmp_path, state, tiny_config, {1: 0.1, 2: 0.2}, keep=2)
    (tmp_path / "checkpoints" / "1" / "measured" / "metadata").write_text("{")
    assert Checkpoints(tmp_path).step("best") == 2
    assert Checkpoints(tmp_path).latest_step() == 2


@pytest.mark.usefixtures("one_device")
def test_the_newest_the_best_and_any_step_can_be_chosen_for_sampling(tiny_config, trained_workdir, tmp_path, capsys):
    network, _ = build_networks(tiny_config.model)
    state = create_state(network, make_optimizer(tiny_config.train), make_mesh(MeshConfig()), 0)
    for file in trained_workdir.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save(tmp_path, state, tiny_config, {3: 0.3, 5: 0.1, 7: 0.2}, keep=3)
    checkpoints = Checkpoints(tmp_path)
    assert [checkpoints.step(name) for name in ("latest", "best", "3")] == [None, 5, 3]
    for name in ("4", "newest"):
        with pytest.raises(CheckpointError, match=rf"no checkpoint '{name}'; may be latest, best, or one of \[3, 5"):
            checkpoints.step(name)
    for step in (3, 5):
        found = checkpoints.averaged_parameters(network, make_mesh(MeshConfig()), step)
        np.testing.assert_array_equal(found["mmdit.out.kernel"], step)
    argv = ["--model", str(tmp_path), "--identity", "seed:1", "--out", str(tmp_path / "set"), "--checkpoint", "best"]
    assert sample.main([*argv, "--steps", "1", "--expressions", "joy"]) == 0
    assert ", step 5, " in capsys.readouterr().err
    assert "step 5," in json.loads((tmp_path / "set" / "set.json").read_text())["model"]
