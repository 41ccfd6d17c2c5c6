"""Output that nobody reads is no error, and changes no exit status."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from rich.console import Console
from genaffect_jax.io.output import expendable_output

with expendable_output():
    Console(stderr=True).print("first")
    sys.stdin.readline()  # until the reader is gone
    for _ in range(3):
        Console(stderr=True).print("second")
        print("third, not flushed", end="")
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("kind", ["pipe", "full disk"])
def test_a_program_goes_on_and_ends_well_when_its_output_cannot_be_written(kind, tmp_path):
    if kind == "full disk" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    out = subprocess.PIPE if kind == "pipe" else open("/dev/full", "w")  # noqa: SIM115
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "done")]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=buffered, text=True) as process:
        if kind == "pipe":
            assert process.stderr.readline() == "first\n"
            process.stdout.close()
            process.stderr.close()
            process.stdout = process.stderr = None
        try:
            process.communicate("\n", timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0
    assert (tmp_path / "done").read_text() == "done"
