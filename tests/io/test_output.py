"""Output is plain text; that nobody reads it is no error, and changes no exit status."""

import os
import subprocess
import sys

import pytest
from rich.console import Console

from genaffect_jax.io.output import PlainConsole, one_line, print_plainly

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("joy \u00e9 \u6f22 \U0001f600 [red] :joy:", "joy \u00e9 \u6f22 \U0001f600 [red] :joy:"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x00\x07\x08\x7f\x9b", "\\x00\\x07\\x08\\x7f\\x9b"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("gnp\u202e.exe\u2066", "gnp\\u202e.exe\\u2066"),
        (os.fsdecode(b"M\xfcller\xff"), "M\\xfcller\\xff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_printed_is_one_line_that_moves_nothing(text, shown, capsys):
    assert one_line(text) == shown
    PlainConsole().print(text, soft_wrap=True)
    print_plainly(Console(stderr=True), text)
    assert capsys.readouterr().err == f"{shown}\n{shown}\n"
