"""The launch scripts: what --dry-run prints is what runs, arguments arrive unchanged, restarts happen when due."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("tpu_vm.sh", "xpk.sh", "slurm.sh", "container.sh")
ODD = ["$HOME", "", "a;b", "*", "`x`", "~", 'a "quoted" \\ word']
TRAINING = ["--config", "my presets/tiny.py", "--workdir", "/shared/it's here", "--text.plain", *ODD]
TPU = ["--name", "pod", "--zone", "us-west4-a"]
XPK = ["--cluster", "c", "--name", "w", "--type", "v5litepod-16", "--image", "r/g:tpu"]
# One command line per action and variant.
LINES = [
    ["tpu_vm.sh", "create", *TPU, "--type", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite", "--project", "p"],
    ["tpu_vm.sh", "create", *TPU, "--type", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite", "--spot"],
    ["tpu_vm.sh", "setup", *TPU, "--revision", "v1", "--python", "/opt/py thon"],
    ["tpu_vm.sh", "setup", *TPU, "--revision", "v1", "--repository", "git@host:a b.git"],
    ["tpu_vm.sh", "run", *TPU, "--max-restarts", "3", "--extra=--internal-ip", "--", *TRAINING],
    ["tpu_vm.sh", "status", *TPU, "--queued"],
    ["tpu_vm.sh", "stop", *TPU],
    ["tpu_vm.sh", "exec", *TPU, "--", "ls", "a b"],
    ["tpu_vm.sh", "delete", *TPU],
    ["tpu_vm.sh", "delete", *TPU, "--spot"],
    ["xpk.sh", "run", *XPK, "--slices", "2", "--storage", "one", "--storage", "two", "--extra=--spot", "--", *TRAINING],
    ["xpk.sh", "status", "--cluster", "c", "--name", "w", "--zone", "z"],
    ["xpk.sh", "stop", "--cluster", "c", "--name", "w"],
    ["slurm.sh", "--nodes", "2", "--gpus", "4", "--time", "1:00:00", "--extra=--account=a b", "--", *TRAINING],
    ["container.sh", "build", "--tag", "g:cuda", "--platform", "cuda", "--uid", "0"],
    ["container.sh", "run", "--tag", "g:cuda", "--platform", "cuda", "--mount", "/shared", "--", *TRAINING],
    ["container.sh", "push", "--tag", "g:cuda"],
]


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path):
    """A folder for PATH with plain tools only: no real cloud tool can be reached from a test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "id", "mkdir", "sed"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def recorded(path, tmp_path):
    """Puts fakes on PATH that record their arguments; returns a function that reads what they recorded."""
    record = tmp_path / "record"
    for name in ("gcloud", "xpk", "sbatch", "docker", "git"):
        executable(path / name, f"#!/bin/bash\n{{ printf '%s\\0' {name} \"$@\"; printf '\\1'; }} >>'{record}'\n")
    return lambda: [call.split("\0")[:-1] for call in record.read_text().split("\1")[:-1]] if record.exists() else []


def launch(path, script, *options):
    environment = {"PATH": str(path), "TMPDIR": "/tmp"}
    return subprocess.run([LAUNCH / script, *options], env=environment, capture_output=True, text=True, timeout=60)


def dry(path, script, *options):
    """The commands that --dry-run prints, as argument lists."""
    action, rest = (options[:1], options[1:]) if script != "slurm.sh" else ((), options)
    done = launch(path, script, *action, "--dry-run", *rest)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[:2]))
def test_a_run_executes_exactly_what_the_dry_run_prints(line, path, recorded):
    printed = dry(path, *line)
    assert printed
    assert recorded() == []
    assert launch(path, *line).returncode == 0
    assert recorded() == printed


def test_tpu_vm_commands(path):
    at = ["--zone", "us-west4-a"]
    gcloud = ["gcloud", "compute", "tpus"]
    create, spot, packed, cloned, run = (dry(path, *line) for line in LINES[:5])
    assert create == [
        [
            *gcloud,
            "tpu-vm",
            "create",
            "pod",
            "--accelerator-type",
            "v5litepod-16",
            "--version",
            "v2-alpha-tpuv5-lite",
            *at,
            "--project",
            "p",
        ]
    ]
    assert spot == [
        [
            *gcloud,
            "queued-resources",
            "create",
            "pod",
            "--node-id",
            "pod",
            "--accelerator-type",
            "v5litepod-16",
            "--runtime-version",
            "v2-alpha-tpuv5-lite",
            "--spot",
            *at,
        ]
    ]
    copy = [*gcloud, "tpu-vm", "scp"]
    script = [*copy, str(LAUNCH / "tpu_worker.sh"), "pod:genaffect_jax_worker.sh", *at, "--worker", "all"]
    ssh = [*gcloud, "tpu-vm", "ssh", "pod", *at, "--worker", "all", "--command"]
    tar = "/tmp/genaffect_jax-pod.tar.gz"
    assert packed == [
        ["git", "-C", str(ROOT), "archive", "--format", "tar.gz", "--output", tar, "v1"],
        script,
        [*copy, tar, "pod:genaffect_jax.tar.gz", *at, "--worker", "all"],
        [
            *ssh,
            "bash genaffect_jax_worker.sh setup --folder genaffect_jax --archive genaffect_jax.tar.gz "
            "--python '/opt/py thon'",
        ],
    ]
    assert cloned == [
        script,
        [
            *ssh,
            "bash genaffect_jax_worker.sh setup --folder genaffect_jax --repository 'git@host:a b.git' --revision v1",
        ],
    ]
    *head, command = run[0]
    assert head == [*gcloud, "tpu-vm", "ssh", "pod", *at, "--internal-ip", "--worker", "all", "--command"]
    assert shlex.split(command) == [
        "bash",
        "genaffect_jax_worker.sh",
        "start",
        "--folder",
        "genaffect_jax",
        "--max-restarts",
        "3",
        "--restart-on",
        "130,75",
        "--",
        *TRAINING,
        "--distributed.cluster",
        "gcetpu",
    ]
    own = dry(path, "tpu_vm.sh", "run", *TPU, "--", *TRAINING, "--distributed.cluster", "none")
    assert shlex.split(own[0][-1])[-3:] == [TRAINING[-1], "--distributed.cluster", "none"]


def test_xpk_command(path):
    ((*head, command),) = dry(path, *LINES[10])
    assert head == [
        "xpk",
        "workload",
        "create",
        "--cluster",
        "c",
        "--workload",
        "w",
        "--tpu-type",
        "v5litepod-16",
        "--num-slices",
        "2",
        "--docker-image",
        "r/g:tpu",
        "--storage",
        "one",
        "--storage",
        "two",
        "--max-restarts",
        "20",
        "--restart-on-exit-codes",
        "75",
        "--termination-grace-period-seconds",
        "120",
        "--spot",
        "--command",
    ]
    assert shlex.split(command) == ["exec", "python", "-m", "genaffect_jax.train", *TRAINING]


def test_slurm_command(path):
    module = ["-m", "genaffect_jax.train", *TRAINING]
    assert dry(path, *LINES[13]) == [
        [
            "sbatch",
            "--job-name",
            "genaffect_jax",
            "--nodes",
            "2",
            "--ntasks-per-node",
            "4",
            "--gpus-per-node",
            "4",
            "--time",
            "1:00:00",
            "--account=a b",
            str(LAUNCH / "slurm.sbatch"),
            "20",
            ".venv/bin/python",
            *module,
        ]
    ]
    contained = dry(path, "slurm.sh", "--apptainer", "g.sif", "--bind", "/da ta", "--", *TRAINING)[0]
    after = contained.index("20")
    assert contained[after + 1 :] == [
        "apptainer",
        "exec",
        "--nv",
        "--bind",
        "/shared/it's here",
        "--bind",
        "/da ta",
        "g.sif",
        "python",
        *module,
    ]


def test_container_commands(path, recorded):
    assert dry(path, *LINES[14]) == [
        [
            "docker",
            "build",
            "--file",
            str(LAUNCH / "Containerfile"),
            "--build-arg",
            "EXTRA=cuda",
            "--build-arg",
            "USER_ID=0",
            "--tag",
            "g:cuda",
            str(ROOT),
        ]
    ]
    run = dry(path, *LINES[15])[0]
    assert run[:2] == ["docker", "run"]
    assert " ".join(run[2:]).startswith(
        f"--rm --init --stop-timeout 120 --shm-size 8g --user {os.getuid()}:{os.getgid()}"
    )
    assert run[run.index("--volume") :] == [
        "--volume",
        "/shared:/shared",
        "--gpus",
        "all",
        "g:cuda",
        "python",
        "-m",
        "genaffect_jax.train",
        *TRAINING,
    ]
    (path / "docker").rename(path / "podman")
    assert dry(path, "container.sh", "push", "--tag", "g") == [["podman", "push", "g"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["tpu_vm.sh", "run", "--name", "n", "--", *TRAINING], "--zone is missing"),
        (["tpu_vm.sh", "create", *TPU, "--type", "t"], "--runtime is missing"),
        (["tpu_vm.sh", "run", *TPU, "--config", "c"], "--config: unknown option"),
        (["tpu_vm.sh", "run", *TPU, "--", "--config", "c"], "need --workdir, a folder on storage"),
        (["tpu_vm.sh", "run", *TPU, "--max-restarts", "x", "--", *TRAINING], "--max-restarts x: must be a whole"),
        (["tpu_vm.sh", "setup", *TPU, "--repository", "u"], "--repository needs --revision"),
        (["tpu_vm.sh", "go", *TPU], "'go': must be one of create, setup"),
        (["tpu_vm.sh"], "'': must be one of create, setup"),
        (["xpk.sh", "run", "--cluster", "c", "--name", "n", "--type", "t", "--", *TRAINING], "--image is missing"),
        (["xpk.sh", "run", *XPK, "--", "--workdir", "out/w"], "--workdir out/w: must be an absolute path"),
        (["xpk.sh", "run", *XPK, "--", *TRAINING, "a\nb"], "a training argument with a line break"),
        (["tpu_vm.sh", "run", "stop", *TPU], "stop: there is an action already, run"),
        (["slurm.sh", "--nodes"], "--nodes needs a value"),
        (["slurm.sh", "--nodes", "--", *TRAINING], "--nodes needs a value"),
        (["slurm.sh", "--node"], "--node: unknown option"),
        (["slurm.sh", "run", "--", *TRAINING], "run: neither an option nor its value"),
        (["slurm.sh", "--bind", "/data", "--", *TRAINING], "--bind is of use with --apptainer only"),
        (["container.sh", "build"], "--tag is missing"),
        (["container.sh", "build", "--tag", "g", "--platform", "rocm"], "--platform rocm: must be tpu, cuda or cpu"),
        (["container.sh", "run", "--tag", "g", "--mount", "/share", "--", *TRAINING], "lies in no --mount"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_options_are_named_and_nothing_runs(line, words, path, recorded):
    done = launch(path, *line)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert recorded() == []


def test_an_action_may_stand_among_the_options(path):
    for script, options in (("tpu_vm.sh", TPU), ("xpk.sh", XPK)):
        done = launch(path, script, *options, "status", "--dry-run")
        assert (done.returncode, done.stderr) == (0, "")
        assert [shlex.split(line) for line in done.stdout.splitlines()] == dry(path, script, "status", *options)


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[:2]))
def test_a_missing_tool_is_one_clear_error(line, path):
    done = launch(path, *line)
    assert done.returncode == 127
    assert re.fullmatch(r"error: (gcloud|xpk|sbatch|docker) is not on PATH; .*\n", done.stderr)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(script, path):
    done = launch(path, script, "--help")
    assert "shellcheck" not in done.stdout
    assert done.returncode == 0
    options = re.findall(
        r"^ +(--[a-z-]+)\)|^ +(--[a-z]+) \| (--[a-z]+)\) (?:where|capacity)", (LAUNCH / script).read_text(), re.M
    )
    named = {name for group in options for name in group if name} | {"--extra", "--dry-run"}
    assert len(named) > 5
    assert {name for name in named if name not in done.stdout} == set()


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


def test_the_image_copies_only_what_the_ignore_file_lets_in():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[1] == "*"
    copied = re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Containerfile").read_text(), re.M)
    sources = {source for line in copied for source in line.split()}
    assert {source.split("/")[0] for source in sources} == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_shellcheck_has_nothing_to_say():
    files = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
    assert len(files) == 7
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--external-sources", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
