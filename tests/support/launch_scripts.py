"""Launch scripts started without any cloud tool: command lines, dry runs, and programs that stand in for tools."""

import shlex
import subprocess
from pathlib import Path

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


def launch(path, script, *options):
    environment = {"PATH": str(path), "TMPDIR": "/tmp"}
    return subprocess.run([LAUNCH / script, *options], env=environment, capture_output=True, text=True, timeout=60)


def dry(path, script, *options):
    """The commands that --dry-run prints, as argument lists."""
    action, rest = (options[:1], options[1:]) if script != "slurm.sh" else ((), options)
    done = launch(path, script, *action, "--dry-run", *rest)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]
