"""What docs/guide/fault_tolerance.md#faults says of faults: disks, folders, records, clocks and other devices."""

import contextlib
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support.training_runs import QUIET, Numbered, assert_equal_ends, final_state, rows, task, with_train

from genaffect_jax import train
from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import CheckpointError, DataError
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.loop import fit
from genaffect_jax.training.metric_log import TrainingLog
from genaffect_jax.training.state import TrainState


class Until(Numbered):
    """Batches that call `event` when batch number `at` is asked for."""

    def __init__(self, at, event):
        super().__init__()
        self.at, self.event = at, event

    def __next__(self):
        if self.fetched - 100 + 1 == self.at:
            self.event()
        return super().__next__()


def run(config, workdir, batches=None):
    return fit(task(config, batches or Numbered()), config.train, make_mesh(MeshConfig()), RunDir(workdir), QUIET)


@pytest.fixture(scope="module")
def config(tiny_config):
    return with_train(tiny_config, steps=6, checkpoint_every=2, keep_checkpoints=3, schedule="constant", log_every=50)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(config, folder)
    return folder


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small file system of its own, where this process may have one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def saved(workdir: Path, step: int) -> None:
    """Waits until a checkpoint is there; saves go on in the background."""
    deadline = time.monotonic() + 60
    while not (workdir / "checkpoints" / str(step)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fill(folder: Path) -> Path:
    """Takes all that is free in a file system."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(folder).free == 0
    return ballast


def test_a_full_disk_ends_training_in_words_and_the_same_command_continues(config, undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "size=16m") as disk:
        with pytest.raises(CheckpointError) as failure:
            run(config, disk / "run", Until(3, lambda: [saved(disk / "run", 2), fill(disk)]))
        message = str(failure.value)
        assert f"{disk}/run/checkpoints/4: cannot be saved" in message
        assert "cannot be saved: No space left on device. Its half-written files are removed, " in message
        assert "Earlier checkpoints are as they were (2)" in message
        assert Checkpoints(disk / "run").latest_step() == 2
        with pytest.raises(CheckpointError, match=r"free, a checkpoint takes about .*make room before training begins"):
            run(config, disk / "run")
        (disk / "ballast").unlink()
        assert run(config, disk / "run")
        assert_equal_ends(config, disk / "run", undisturbed)


def test_a_disk_that_is_full_while_logging_ends_training_in_words_and_the_log_stays_whole(
    config, undisturbed, tmp_path
):
    logging = with_train(config, log_every=1, checkpoint_every=1000, steps=400)
    with mounted(tmp_path / "disk", "size=16m") as disk:
        run(with_train(config, steps=4, log_every=1), disk / "run")
        with pytest.raises(OSError, match="No space left on device") as failure:
            run(logging, disk / "run", Until(6, lambda: fill(disk)))
        assert Path(failure.value.filename).name in ("metrics.jsonl", "tensorboard")
        (disk / "ballast").unlink()
        assert run(config, disk / "run")
        steps = [row["step"] for row in rows(disk / "run")]
        assert steps == sorted(set(steps))
        assert_equal_ends(config, disk / "run", undisturbed)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_save_that_fails_in_the_background_ends_training_at_the_next_step(config, undisturbed, tmp_path):
    """No file may grow, which is what a full disk looks like, and needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run(with_train(config, steps=2), tmp_path)

    class Slow(Until):
        def __next__(self):
            time.sleep(1 if self.fetched - 100 >= 5 else 0)  # a save takes longer than a step of this model
            return super().__next__()

    batches = Slow(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoints/4: cannot be saved: .*as they were \(2\)"):
            run(with_train(config, steps=99, checkpoint_every=4), tmp_path, batches)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert batches.fetched - 100 < 8  # it was not the next save that noticed
    assert Checkpoints(tmp_path).latest_step() == 2
    assert run(config, tmp_path)
    assert_equal_ends(config, tmp_path, undisturbed)


def test_what_a_killed_run_left_half_written_is_removed_before_training(tmp_path):
    for name in ("checkpoints/8.orbax-checkpoint-tmp/ema", "fixed.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir(parents=True)
    one = {"w": jax.numpy.zeros(1)}
    Checkpoints(tmp_path).check_space(TrainState(jax.numpy.int32(0), one, {}, one, one))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_too_little_room_is_said_before_training(tmp_path, monkeypatch):
    one = {"w": jax.numpy.zeros(10**6 // 4)}
    state, said = TrainState(jax.numpy.int32(0), one, one, one, one), []
    checkpoints = Checkpoints(tmp_path, 2, said.append, keep_best=1)
    for megabytes, words in ((13, None), (12, "4 more will lie there at once"), (4, "4 more will lie there at once")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, m=megabytes: SimpleNamespace(free=m * 10**6 + 10**5))
        said.clear()
        checkpoints.check_space(state)
        assert [words in line for line in said] == ([True] if words else [])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(
        CheckpointError,
        match=r"1\.00 MB free, a checkpoint takes about 3\.00 MB, frozen parameters "
        r"1\.00 MB once; make room",
    ):
        checkpoints.check_space(state)


def outcome(preset, workdir, capsys):
    status = train.main(["--config", str(preset()), "--workdir", str(workdir)])
    return status, capsys.readouterr().err.strip().splitlines()


def test_a_run_folder_that_cannot_be_made_is_one_line(preset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, lines = outcome(preset, tmp_path / "file" / "run", capsys)
    assert (status, len(lines)) == (2, 1)
    assert "file/run: cannot be written to: Not a directory" in lines[0]


def test_a_read_only_run_folder_is_one_line_and_changes_nothing(preset, tmp_path, capsys):
    with mounted(tmp_path / "disk", "ro") as disk:
        status, lines = outcome(preset, disk, capsys)
        assert (status, len(lines)) == (2, 1)
        assert f"error: --workdir {disk}: cannot be written to: Read-only file system" in lines[0]
        assert list(disk.iterdir()) == []


def test_a_record_that_cannot_be_read_costs_no_step(config, undisturbed, tmp_path):
    def broken():
        raise DataError("p3/joy.png: was readable when the folder was checked, but is no longer")

    with pytest.raises(DataError, match=r"p3/joy\.png"):
        run(config, tmp_path, Until(6, broken))
    assert Checkpoints(tmp_path).latest_step() == 5
    assert run(config, tmp_path)
    assert_equal_ends(config, tmp_path, undisturbed)


def test_a_clock_that_jumps_changes_nothing(config, undisturbed, tmp_path, monkeypatch):
    true = {"time": time.time, "time_ns": time.time_ns}
    hours = {"now": 0}
    monkeypatch.setattr(time, "time", lambda: true["time"]() + 3600 * hours["now"])
    monkeypatch.setattr(time, "time_ns", lambda: true["time_ns"]() + 3600 * 10**9 * hours["now"])
    logging = with_train(config, log_every=1)
    for jumps in ({2: 7, 3: -30}, {5: 90, 6: -9}):  # within a run, and between two

        class Jumping(Numbered):
            def __next__(self, jumps=jumps):
                hours["now"] = jumps.get(self.fetched - 100 + 1, hours["now"])
                return super().__next__()

        steps = max(jumps) if 6 in jumps else 4
        assert run(with_train(logging, steps=steps), tmp_path, Jumping())
        for place, folder in enumerate(sorted((tmp_path / "checkpoints").iterdir(), key=lambda d: int(d.name))):
            os.utime(folder, (10**9 - 10**5 * place,) * 2)  # the newest by step is the oldest by its file times
    assert sorted(int(d.name) for d in (tmp_path / "checkpoints").iterdir()) == [2, 4, 6]
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [2, 3, 4, 6]  # the first of each process compiles
    assert all(row["images_per_second"] > 0 for row in logged)
    assert_equal_ends(config, tmp_path, undisturbed)


def test_a_run_on_eight_devices_continues_on_two(config, tmp_path):
    eight = make_mesh(MeshConfig(fsdp=4, tensor=2))
    two = make_mesh(MeshConfig(), jax.devices()[:2])
    logging = with_train(config, log_every=1, steps=8, checkpoint_every=4)
    fit(task(logging, Numbered()), logging.train, eight, RunDir(tmp_path / "whole"), QUIET)
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "8")
    # Restoring is exact ...
    states = []
    for mesh in (eight, two):
        state, position = final_state(config, tmp_path / "moved", mesh)
        assert (int(state.step), position) == (4, {"fetched": 104})
        states.append(jax.tree.leaves(state))
    for a, b in zip(*states, strict=True):
        assert b.sharding.device_set == set(jax.devices()[:2])
        np.testing.assert_array_equal(a, b)
    # ... and what follows differs by the order of sums only.
    fit(task(logging, Numbered()), logging.train, two, RunDir(tmp_path / "moved"), QUIET)
    losses = [{row["step"]: row["loss"] for row in rows(tmp_path / name)} for name in ("whole", "moved")]
    assert list(losses[1]) == [2, 3, 4, 6, 7, 8]  # the first of each process compiles
    for step, loss in losses[1].items():
        assert loss == pytest.approx(losses[0][step], rel=1e-5)


def test_tensorboard_events_hold_the_numbers_of_their_steps(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    for first in (0, 4):
        log = TrainingLog(RunDir(tmp_path), first)
        log.numbers(first + 2, {"loss": 0.5 + first})
        log.sheet(first + 2, np.zeros((8, 8, 3), np.uint8))
        log.close()
    found, starts = {}, []
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.name)
    assert len(files) == 2
    for file in files:
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status:
                starts.append(event.step)
            for value in event.summary.value:
                found[event.step, value.tag] = value.simple_value or value.image.width
    assert starts == [1, 5]  # what a continued run does again replaces what was there
    assert found == {(2, "loss"): 0.5, (2, "sheet"): 8, (6, "loss"): 4.5, (6, "sheet"): 8}
