"""The launch scripts: trainings restart when due, stop when told, and a pod is set up from a packed revision."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.launch_scripts import LAUNCH, LINES, TPU, TRAINING, dry, executable


def fake_training(statuses, record):
    """A Python that notes its arguments and run folder, and ends with the next of the statuses."""
    return f"""#!/bin/bash
{{ printf '%s\\0' "$PWD" "$@"; printf '\\1'; }} >>'{record}'
statuses=({" ".join(map(str, statuses))})
exit "${{statuses[$(($(tr -dc '\\1' <'{record}' | wc -c) - 1))]}}"
"""


def eventually(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def worker(home, *arguments):
    return subprocess.run(
        ["bash", LAUNCH / "tpu_worker.sh", *arguments], cwd=home, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("statuses", "options", "starts"),
    [
        ([130, 75, 0], ["--max-restarts", "5"], 3),
        ([130, 1], ["--max-restarts", "5"], 2),
        ([1], ["--max-restarts", "5"], 1),
        ([130, 130, 130, 130], ["--max-restarts", "2"], 3),
        ([134, 0], ["--max-restarts", "2", "--restart-on", "130,134"], 2),
    ],
)
def test_a_worker_restarts_after_an_interruption_only_and_not_for_ever(statuses, options, starts, tmp_path):
    record = tmp_path / "record"
    (tmp_path / "f/source").mkdir(parents=True)
    executable(tmp_path / "f/venv/bin/python", fake_training(statuses, record))
    started = worker(tmp_path, "start", "--folder", "f", *options, "--", *TRAINING)
    assert started.returncode == 0, started.stderr
    eventually((tmp_path / "f/run/exit_status").exists)
    eventually(
        lambda: f"ended with status {statuses[starts - 1]}" in worker(tmp_path, "status", "--folder", "f").stdout
    )
    call = [str(tmp_path / "f/source"), "-m", "genaffect_jax.train", *TRAINING]
    assert [c.split("\0")[:-1] for c in record.read_text().split("\1")[:-1]] == [call] * starts
    assert (tmp_path / "f/run/train.log").read_text().count("training ended with status") == starts


def test_stop_lets_a_worker_save_and_does_not_restart(tmp_path):
    (tmp_path / "f/source").mkdir(parents=True)
    note = tmp_path / "note"
    executable(
        tmp_path / "f/venv/bin/python",
        f"#!/bin/bash\ntrap 'sleep 0.3; echo saved >>{note}; exit 130' TERM\necho started >>{note}\n"
        "for _ in {1..400}; do sleep 0.05; done\n",
    )
    start = ["start", "--folder", "f", "--max-restarts", "5", "--", "--workdir", "/w"]
    assert ": started (pid" in worker(tmp_path, *start).stdout
    eventually(note.exists)
    assert ": already running (pid" in worker(tmp_path, *start).stdout
    other = worker(tmp_path, *start, "--train.steps", "7")
    assert other.returncode == 2
    assert "another training is running" in other.stderr
    refused = worker(tmp_path, "setup", "--folder", "f", "--archive", "none")
    assert "a training is running; stop it first" in refused.stderr
    assert ": ended with status 130" in worker(tmp_path, "stop", "--folder", "f").stdout
    assert note.read_text().split() == ["started", "saved"]


def test_a_pod_is_set_up_and_trains_from_a_packed_revision(tmp_path, path):
    """Whole way on two fake workers: gcloud's ssh and scp act on two home folders of this machine."""
    project = tmp_path / "project"
    shutil.copytree(LAUNCH, project / "launch")
    (project / "constraints.txt").write_text("")
    git = ["git", "-C", str(project), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "one"], check=True)
    (project / "uncommitted").write_text("")
    # The Python of the workers: makes an "environment" of itself, and trains by noting its arguments.
    python = tmp_path / "python"
    executable(
        python,
        "#!/bin/bash\ncase $1$2 in\n"
        '  -mvenv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;\n'
        "  -mpip) printf '%s\\n' \"$*\" >pip ;;\n"
        "  -mgenaffect_jax.train) printf '%s\\0' \"$@\" >trained ;;\n"
        "esac\n",
    )
    for name in ("git", "tar", "gzip", "cp", "mv", "rm", "realpath", "uname", "tr", "cmp", "nohup", "tail", "sleep"):
        (path / name).symlink_to(shutil.which(name))
    homes = [tmp_path / "home 0", tmp_path / "home 1"]
    for home in homes:
        home.mkdir()
    executable(
        path / "gcloud",
        "#!/bin/bash\n"
        f"for home in {shlex.join(map(str, homes))}; do\n"
        '  if [[ $4 == scp ]]; then cp "$5" "$home/${6#*:}"; else (cd "$home" && bash -c "${!#}"); fi || exit\n'
        "done\n",
    )
    environment = {"PATH": str(path), "TMPDIR": str(tmp_path)}
    for line in (["setup", *TPU, "--python", str(python)], ["run", *TPU, "--", *TRAINING]):
        subprocess.run([project / "launch/tpu_vm.sh", *line], env=environment, check=True, timeout=60)
    for home in homes:
        eventually((home / "genaffect_jax/run/exit_status").exists)
        folder = home / "genaffect_jax"
        assert (folder / "source/launch/tpu_vm.sh").exists()
        assert not (folder / "source/uncommitted").exists()
        assert (folder / "pip").read_text().split("install ")[1] == (
            "--quiet -c source/constraints.txt --editable ./source[tpu]\n"
        )
        arguments = (folder / "source/trained").read_text().split("\0")[:-1]
        assert arguments == ["-m", "genaffect_jax.train", *TRAINING, "--distributed.cluster", "gcetpu"]


@pytest.mark.parametrize(
    ("status", "restarts_so_far", "requeued"),
    [
        (130, None, True),
        (130, 4, True),
        (130, 5, False),
        (75, None, True),
        (1, None, False),
        (0, None, False),
        (137, None, False),
    ],
)
def test_a_slurm_job_is_queued_again_after_an_interruption_only(status, restarts_so_far, requeued, tmp_path):
    done, calls = slurm_job(tmp_path, f"exit {status}", restarts_so_far)
    assert done.returncode == status
    srun = ["srun", "--kill-on-bad-exit=0", "--wait=300", "--cpus-per-task", "6"]
    expected = [[*srun, "python", "-m", "genaffect_jax.train", *TRAINING]]
    assert calls == expected + [["scontrol", "requeue", "17"]] * requeued


def test_a_cancelled_slurm_job_is_not_queued_again(tmp_path):
    done, calls = slurm_job(tmp_path, "kill -TERM $PPID; sleep 0.2; exit 130")
    assert done.returncode == 130
    assert [call[0] for call in calls] == ["srun"]


def slurm_job(folder, srun, restarts=None):
    """Runs slurm.sbatch as SLURM would, with an srun that does what is said; returns its end and what it called."""
    record = folder / "record"
    for name, does in (("srun", srun), ("scontrol", "exit 0")):
        note = f"{{ printf '%s\\0' {name} \"$@\"; printf '\\1'; }} >>'{record}'"
        executable(folder / "bin" / name, f"#!/bin/bash\n{note}\n{does}\n")
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "6",
    }
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    line = ["bash", LAUNCH / "slurm.sbatch", "5", "python", "-m", "genaffect_jax.train", *TRAINING]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    return done, [call.split("\0")[:-1] for call in record.read_text().split("\1")[:-1]]


def test_the_command_for_xpk_gets_its_arguments_and_the_signal(path, tmp_path):
    """XPK starts the command in a subshell of bash and sends SIGTERM to that subshell (core/docker_container.py)."""
    command = dry(path, *LINES[10])[0][-1]
    executable(
        tmp_path / "fake/python",
        f"#!{sys.executable}\nimport json, pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        f"pathlib.Path({str(tmp_path / 'arguments')!r}).write_text(json.dumps(sys.argv[1:]))\nsignal.pause()\n",
    )
    pod = subprocess.Popen(
        ["bash", "-c", f"trap 'kill -TERM $!' TERM; (true; {command}) & PID=$!; wait $PID; wait $PID"],
        env={"PATH": f"{tmp_path / 'fake'}:{path}"},
    )
    arguments = tmp_path / "arguments"
    eventually(lambda: arguments.exists() and arguments.read_text())
    time.sleep(0.2)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(20) == 130
    assert json.loads(arguments.read_text()) == ["-m", "genaffect_jax.train", *TRAINING]
