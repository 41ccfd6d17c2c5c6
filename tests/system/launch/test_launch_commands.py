"""The launch scripts: what --dry-run prints is what runs, and arguments arrive unchanged."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.launch_scripts import LAUNCH, LINES, ROOT, SCRIPTS, TPU, TRAINING, XPK, dry, launch


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
