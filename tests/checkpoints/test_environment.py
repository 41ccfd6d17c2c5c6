"""The environment of a deterministic run: recorded when it begins, required when it continues."""

import json

import pytest

from genaffect_jax.checkpoints.environment import differences, keep_environment
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import CheckpointError, ConfigError
from genaffect_jax.parallel.environment import describe_environment
from genaffect_jax.parallel.mesh import make_mesh

NOW = {"platform": "gpu", "device_kind": "NVIDIA H200", "devices": 1, "version.jax": "0.11.2"}


@pytest.fixture
def run_dir(tmp_path):
    """A folder whose run began deterministic."""
    folder = RunDir(tmp_path)
    assert keep_environment(folder, True, 0, NOW) == (
        "deterministic from step 0 on: the environment is recorded in environment.json"
    )
    return folder


def test_the_same_environment_continues_and_leaves_the_record_alone(run_dir):
    before = run_dir.environment.read_text()
    assert json.loads(before) == {"from_step": 0, "environment": NOW}
    told = keep_environment(run_dir, True, 40, dict(reversed(NOW.items())))
    assert told == "deterministic from step 0 on: the environment is that of environment.json"
    assert run_dir.environment.read_text() == before


@pytest.mark.parametrize("name", list(describe_environment(make_mesh(MeshConfig()))))
def test_any_other_value_is_named_with_what_was_and_what_is(tmp_path, name):
    before = describe_environment(make_mesh(MeshConfig()))
    now = {**before, name: "other"}
    run_dir = RunDir(tmp_path)
    keep_environment(run_dir, True, 0, before)
    with pytest.raises(ConfigError) as raised:
        keep_environment(run_dir, True, 7, now)
    assert raised.value.on_command_line == (
        f"--train.deterministic True: the run in {tmp_path} has been deterministic from step 0 on in another "
        f"environment ({name} was {before[name]}, is other). Continue it in that environment, or give up the promise "
        "with False"
    )
    assert json.loads(run_dir.environment.read_text())["environment"] == before


def test_all_differences_are_listed_and_absent_entries_are_said_to_be():
    found = differences({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5})
    assert found == ["a was 1, is absent", "c was 3, is 4", "d was absent, is 5"]


def test_a_run_that_begins_anew_records_its_own_environment(run_dir):
    keep_environment(run_dir, True, 0, {**NOW, "devices": 2})
    assert json.loads(run_dir.environment.read_text())["environment"]["devices"] == 2


def test_off_gives_up_the_promise_and_on_again_promises_from_there(run_dir):
    told = keep_environment(run_dir, False, 30, {**NOW, "devices": 4})
    assert told.startswith("train.deterministic is off from step 30 on: environment.json is removed")
    assert not run_dir.environment.exists()
    assert keep_environment(run_dir, False, 40, NOW) is None
    assert keep_environment(run_dir, True, 50, NOW).startswith("deterministic from step 50 on")
    with pytest.raises(ConfigError, match="deterministic from step 50 on in another environment"):
        keep_environment(run_dir, True, 60, {**NOW, "devices": 4})


def test_a_record_that_cannot_be_read_is_no_record(run_dir):
    for text in ("{", "[]", '{"environment": {}}'):
        run_dir.environment.write_text(text)
        with pytest.raises(CheckpointError, match=r"environment\.json: no record of an environment"):
            keep_environment(run_dir, True, 7, NOW)
