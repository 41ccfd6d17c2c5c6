"""All commands under one name: a list, the same options, the same exit statuses."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from genaffect_jax import __main__ as command
from genaffect_jax import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def same_name_afterwards(monkeypatch):
    monkeypatch.setattr(cli, "_program", None)


def test_without_a_command_all_are_listed_without_jax():
    program = "import sys; from genaffect_jax.__main__ import main; main([]); assert 'optax' not in sys.modules"
    listed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for name, (module, about) in command.COMMANDS.items():
        assert name in listed
        assert about in listed
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_explains_itself_under_its_name(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    assert f"genaffect {name}" in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys):
    assert command.main(["draw"]) == 2
    assert capsys.readouterr().err == (
        "error: draw: no command; the commands are train, sample, evaluate, prepare, export, compile_check\n"
    )


def test_the_status_is_that_of_the_command_and_the_script_is_installed(capsys):
    assert (
        command.main(["sample", "--model", "nowhere", "--identity", "seed:1", "--expressions", "joy", "--out", "o"])
        == 2
    )
    assert "nowhere" in capsys.readouterr().err
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"genaffect": "genaffect_jax.__main__:main"}
