"""Two processes of four devices each: the numbers of one, and an end in plain words when one of them is lost."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support import distributed_worker
from support.xla_flags import xla_flags

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DenoiserRun, DistillationConfig, DistributedConfig, from_json, to_json
from genaffect_jax.errors import ConfigError
from genaffect_jax.parallel.distributed import are_several, cluster_of
from genaffect_jax.training.denoiser.task import train_denoiser

WORKER = [sys.executable, distributed_worker.__file__]
# Of one test; a wait that is longer means that somebody waits for ever.
PATIENCE = 120
HEARTBEAT = 6


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Pair:
    """Two processes started together, their errors in files."""

    def __init__(self, folder: Path, command, slurm=False):
        """`command(distributed)` gives the command line of the process of these DistributedConfig fields.

        With `slurm` SLURM's variables say who takes part, instead of flags.
        """
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.logs = [folder / f"process{process_id}.log" for process_id in range(2)]
        self.started = []
        for process_id, log in enumerate(self.logs):
            environment = {**os.environ, "XLA_FLAGS": xla_flags(devices=4)}
            distributed = {"heartbeat_timeout": HEARTBEAT}
            if slurm:
                environment |= {
                    "SLURM_JOB_ID": "7",
                    "SLURM_STEP_NODELIST": "127.0.0.1",
                    "SLURM_NTASKS": "2",
                    "SLURM_PROCID": str(process_id),
                    "SLURM_LOCALID": str(process_id),
                    "JAX_COORDINATOR_PORT": str(port),
                }
            else:
                distributed |= {
                    "coordinator_address": f"127.0.0.1:{port}",
                    "num_processes": 2,
                    "process_id": process_id,
                }
            with log.open("w") as out:
                self.started.append(subprocess.Popen(command(distributed), stdout=out, stderr=out, env=environment))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.kill()
            process.wait()

    def ends(self, seconds=PATIENCE):
        """Exit statuses, and what each process said."""
        until = time.monotonic() + seconds
        for process in self.started:
            process.wait(timeout=max(0.1, until - time.monotonic()))
        return [process.returncode for process in self.started], [log.read_text() for log in self.logs]


def worker_pair(folder, workdir, slurm=False, **options):
    return Pair(
        folder,
        lambda distributed: [*WORKER, json.dumps({"workdir": str(workdir), "distributed": distributed, **options})],
        slurm,
    )


def rows(workdir):
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_checkpoint(pair, workdir, beyond=0):
    """Waits until a checkpoint after a step is complete, and returns the step of the newest."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        steps = [int(d.name) for d in (workdir / "checkpoints").glob("*") if d.name.isdecimal()]
        if steps and max(steps) > beyond:
            return max(steps)
        assert all(p.poll() is None for p in pair.started), [log.read_text() for log in pair.logs]
        time.sleep(0.05)
    raise AssertionError([log.read_text() for log in pair.logs])


def quiet():
    return Console(quiet=True)


def test_losses_of_two_slurm_tasks_are_those_of_one_process_however_the_mesh_lies(tmp_path):
    # Parameters cut across the processes, features within them; and images that devices of both processes share.
    meshes = [[1, 4, 2], [1, 1, 8]]
    options = {"meshes": meshes, "steps": 6, "checkpoint_every": 100}
    with worker_pair(tmp_path / "logs", tmp_path / "two", slurm=True, **options) as pair:
        codes, said = pair.ends()
    assert codes == [0, 0], said
    for mesh in meshes:
        name = "x".join(map(str, mesh))
        assert distributed_worker.train(tmp_path / "one" / name, quiet(), 6, mesh)
        expected, found = ([r["loss"] for r in rows(tmp_path / n / name)] for n in ("one", "two"))
        assert len(expected) == 5  # the first step, a compilation, has no row
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


LOST = "another process of the job is lost or cannot be reached"


def ends_after_a_loss(pair, survivor, killed_at):
    """Exit statuses and what each process said, once the survivor has ended and has said which it lost."""
    pair.started[survivor].wait(timeout=PATIENCE)
    seconds = time.monotonic() - killed_at
    codes, said = pair.ends()
    assert seconds < HEARTBEAT + 20, said
    assert codes[survivor] == 75, said
    # JAX's own threads may still write until the process is gone.
    last = [line for line in said[survivor].splitlines() if line.startswith("error: ")][-1]
    assert last.startswith(f"error: process {survivor} of 2")
    assert LOST in last
    assert "start all processes again" in last
    return codes, said


@pytest.mark.parametrize("checkpoint_every", [5, 1])  # between two saves, mostly, and in one
def test_when_the_system_kills_process_0_both_supervisors_say_what_happened(tmp_path, checkpoint_every):
    options = {"steps": 10_000, "pause": 0.02, "checkpoint_every": checkpoint_every}
    with worker_pair(tmp_path / "a", tmp_path / "run", **options) as pair:
        wait_for_checkpoint(pair, tmp_path / "run")
        supervisor = pair.started[0].pid
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), signal.SIGKILL)
        codes, said = ends_after_a_loss(pair, 1, time.monotonic())
    assert codes[0] == 75
    assert "error: process 0 of 2 was ended by signal 9 (SIGKILL, as the system does when memory runs out)" in said[0]


@pytest.mark.slow
def test_after_sigkill_the_survivor_ends_in_time_and_the_restarted_job_continues_and_stops_together(tmp_path):
    workdir = tmp_path / "run"
    with worker_pair(tmp_path / "a", workdir, steps=10_000, pause=0.02) as pair:
        wait_for_checkpoint(pair, workdir)
        os.kill(pair.started[1].pid, signal.SIGKILL)
        ends_after_a_loss(pair, 0, time.monotonic())

    before = Checkpoints(workdir).latest_step()
    for process_id, number in enumerate(
        (signal.SIGINT, signal.SIGTERM)
    ):  # to one process; both stop after the same step
        with worker_pair(tmp_path / f"b{process_id}", workdir, steps=10_000, pause=0.02) as pair:
            wait_for_checkpoint(pair, workdir, before)
            pair.started[process_id].send_signal(number)
            codes, said = pair.ends()
        assert codes == [130, 130], said
        assert f"continuing at step {before} of 10000" in said[0]
        before = Checkpoints(workdir).latest_step()
        assert f"step {before} of 10000: checkpoint written" in said[0]

    with worker_pair(tmp_path / "c", workdir, steps=before + 3) as pair:
        codes, said = pair.ends()
    assert codes == [0, 0], said
    assert f"continuing at step {before} of {before + 3}" in said[0]
    # Process 0 alone wrote logs, each step once; four runs in two processes learned what one run in one does.
    assert not re.search("step|images|loss", said[1])
    assert len(list((workdir / "tensorboard").iterdir())) == 4
    found = {row["step"]: row["loss"] for row in rows(workdir)}
    assert len(found) == len(rows(workdir))
    distributed_worker.train(tmp_path / "one", quiet(), before + 3, checkpoint_every=10_000)
    expected = {row["step"]: row["loss"] for row in rows(tmp_path / "one")}
    assert max(found) == max(expected) == before + 3
    for step, value in found.items():
        np.testing.assert_allclose(value, expected[step], rtol=1e-4, err_msg=str(step))


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_missing_process_ends_the_others_with_the_address_and_what_to_check(tmp_path, process_id):
    distributed = {
        "coordinator_address": f"127.0.0.1:{free_port()}",
        "num_processes": 2,
        "process_id": process_id,
        "join_timeout": 2,
    }
    began = time.monotonic()
    ended = subprocess.run(
        [*WORKER, json.dumps({"workdir": str(tmp_path / "run"), "distributed": distributed, "steps": 1})],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert time.monotonic() - began < 2 + 30
    assert ended.returncode == 75
    assert ended.stderr.splitlines()[-1].startswith(
        f"error: process {process_id} of 2: waited 2 s at {distributed['coordinator_address']}, and not "
        "all processes of the job have come"
    )
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_slurm_task_that_waits_in_vain_names_the_way_out(tmp_path):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost"}
    ended = subprocess.run(
        [*WORKER, json.dumps({"workdir": str(tmp_path / "run"), "distributed": {"join_timeout": 2}, "steps": 1})],
        env={**os.environ, **slurm, "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 75
    assert ended.stderr.splitlines()[-1].endswith("is to train alone, start it with --distributed.cluster none")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_others_can_be_stopped(tmp_path, number):
    distributed = {"coordinator_address": f"127.0.0.1:{free_port()}", "num_processes": 2, "process_id": 1}
    command = [*WORKER, json.dumps({"workdir": str(tmp_path / "run"), "distributed": distributed, "steps": 1})]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        said = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, said) == (130, "")


def run_train_command(config, tmp_path):
    """Trains into `two` with the command, in two processes; exit statuses and what each said."""
    preset = tmp_path / "preset.py"
    preset.write_text(
        "from genaffect_jax.config import DenoiserRun, from_json\n\n\n"
        f"def config():\n    return from_json(DenoiserRun, {to_json(config)!r})\n"
    )
    words = [sys.executable, "-m", "genaffect_jax.train", "--config", str(preset), "--workdir", str(tmp_path / "two")]

    def command(distributed):
        return [
            *words,
            *(text for name, value in distributed.items() for text in (f"--distributed.{name}", str(value))),
        ]

    with Pair(tmp_path / "logs", command) as pair:
        return pair.ends(400)


@pytest.mark.slow
def test_the_train_command_in_two_processes_equals_one_and_its_folder_is_written_once(tiny_config, tmp_path):
    train = dataclasses.replace(tiny_config.train, steps=3, batch_size=8, log_every=1, probe_every=2)
    data = dataclasses.replace(tiny_config.data, cache_latents=True)
    network = dataclasses.replace(tiny_config.model.mmdit, num_layers=1)
    model = dataclasses.replace(tiny_config.model, mmdit=network)
    config = dataclasses.replace(tiny_config, train=train, data=data, model=model)
    codes, said = run_train_command(config, tmp_path)
    assert codes == [0, 0], said
    assert "8 cpu device(s) of 2 processes" in said[0]
    assert not re.search("step|images|loss", said[1])
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    assert train_denoiser(config, tmp_path / "one", quiet())
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() & {"step", "loss", "eval/loss", "gradient_norm"}:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=name)
    for name in ("config.json", "sheets/0000003.png", "probe.png", "autoencoder.safetensors"):
        assert (tmp_path / "two" / name).exists()


@pytest.mark.slow
def test_a_student_in_two_processes_learns_what_one_does(trained_workdir, tmp_path):
    config = from_json(DenoiserRun, RunDir(trained_workdir).config.read_text())
    distillation = DistillationConfig(teacher=trained_workdir, steps=2, teacher_steps=2)
    config = dataclasses.replace(
        config,
        distillation=distillation,
        train=dataclasses.replace(config.train, steps=3, learning_rate=1e-4, log_every=1, probe_every=0),
    )
    codes, said = run_train_command(config, tmp_path)
    assert codes == [0, 0], said
    assert train_denoiser(config, tmp_path / "one", quiet())
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 2  # the first step, a compilation, has no row
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-3)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("options", "environment", "cluster"),
    [
        ({}, {}, None),
        ({}, {**SLURM, "SLURM_NTASKS": "2"}, "slurm"),
        ({}, {**SLURM, "SLURM_NTASKS": "1"}, None),
        ({}, {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, None),  # a batch script, not srun
        # The shell of `salloc` on a node of the job, and a step that inherited the job's number.
        ({}, {**SLURM, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, None),
        ({}, {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "2"}, "slurm"),
        ({}, {**SLURM, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": ""}, "slurm"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "4"}, "ompi"),
        ({}, {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "0"}, "gketpu"),
        ({}, {"TPU_WORKER_HOSTNAMES": "t0", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        ({}, {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"cluster": "none"}, {**SLURM, "SLURM_NTASKS": "2"}, None),
        ({"cluster": "gcetpu"}, {}, "gcetpu"),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": 0}, {**SLURM, "SLURM_NTASKS": "4"}, None),
    ],
)
def test_a_cluster_counts_only_where_it_has_more_than_one_process(options, environment, cluster):
    config = DistributedConfig(**options)
    assert cluster_of(config, environment) == cluster
    assert are_several(config, environment) == (cluster is not None or "coordinator_address" in options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"coordinator_address": "h:1"},
            r"distributed\.num_processes=None: coordinator_address, num_processes and process_id are given together",
        ),
        (
            {"coordinator_address": "h", "num_processes": 2, "process_id": 0},
            r"distributed\.coordinator_address=h: must be HOST:PORT",
        ),
        (
            {"coordinator_address": "h:1", "num_processes": 2, "process_id": 2},
            r"distributed\.process_id=2: must lie in 0\.\.1",
        ),
        (
            {"coordinator_address": "h:1", "num_processes": 2, "process_id": 0, "cluster": "slurm"},
            r"distributed\.cluster=slurm",
        ),
        ({"join_timeout": 0}, r"distributed\.join_timeout=0: must be at least 1"),
    ],
)
def test_settings_that_say_too_little_or_two_things_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        DistributedConfig(**options)
