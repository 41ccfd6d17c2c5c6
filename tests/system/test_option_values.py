"""Every option of every command with values that no program can use: one line that names the option, status 2.

As a program (`python tests/system/test_option_values.py`) it tries more values, which takes minutes, and prints what
was accepted.
"""

import contextlib
import dataclasses
import io
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genaffect_jax import cli, evaluate, sample, train
from genaffect_jax.config import AutoencoderRun, DenoiserRun, EncoderRun

CONFIGS = Path(__file__).parents[2] / "configs"
UNUSABLE = ("nan", "1e400", str(10**12), "-" + str(10**12))
MORE = ("inf", "-inf", "-1", "0", "", "x", "9" * 400, "0.5", "true", "[red]", "None", "\x00", str(10**30))
SEEDS = ("seed", "train.seed")
Command = Callable[[list[str]], int]


def options(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and types of the leaf options of a configuration."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init and dataclasses.is_dataclass(hints[field.name]):
            yield from options(hints[field.name], f"{prefix}{field.name}.")
        elif field.init:
            yield f"{prefix}{field.name}", hints[field.name]


def commands() -> Iterator[tuple[str, Command, list[str], Any]]:
    """Name, main function, required options and configuration of every command with numbers."""
    for preset, kind in (
        ("avatar_tiny", DenoiserRun),
        ("autoencoder_tiny", AutoencoderRun),
        ("identity_encoder", EncoderRun),
    ):
        yield preset, train.main, ["--config", str(CONFIGS / f"{preset}.py"), "--workdir", "nowhere"], kind
    yield "sample", sample.main, ["--model", "nowhere", "--identity", "seed:1", "--out", "nowhere"], sample.Arguments
    yield "evaluate", evaluate.main, ["--model", "nowhere", "--out", "nowhere"], evaluate.Arguments


def outcome(main: Command, argv: list[str]) -> tuple[Any, str]:
    """Exit status and what was said; the error itself if it is no exit."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return main(argv), said.getvalue()
    except SystemExit as e:
        return e.code, said.getvalue()
    except BaseException as e:  # what the user would see as a traceback
        return e, said.getvalue()


def is_number(hint: Any) -> bool:
    parts = {hint, *typing.get_args(hint)}
    return bool(parts & {int, float}) and bool not in parts


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run", lambda work, distributed=None: 0)


@pytest.mark.parametrize(
    ("name", "main", "required", "kind"), list(commands()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_numbers_that_no_program_can_use_are_refused_in_one_line(name, main, required, kind, tmp_path):
    numbers = [(option, hint) for option, hint in options(kind) if is_number(hint)]
    assert len(numbers) > 15
    for option, hint in numbers:
        for value in UNUSABLE:
            huge = value.lstrip("-").isdecimal()
            if huge and float in {hint, *typing.get_args(hint)}:
                continue  # a large finite number is a number
            if option in SEEDS and value == str(10**12):
                continue
            status, said = outcome(main, [*required, f"--{option}={value}"])
            assert status == 2, f"{name} --{option}={value}: {status!r} {said}"
            assert option.split(".")[-1] in said, said
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    cli.run = lambda work, distributed=None: 0  # type: ignore[assignment]
    tried = 0
    for name, main, required, kind in commands():
        for option, hint in options(kind):
            for value in UNUSABLE + MORE:
                tried += 1
                status, _ = outcome(main, [*required, f"--{option}={value}"])
                if status not in (0, 2):
                    print(f"{name} --{option}={value[:20]!r}: {status!r}")
                elif status == 0 and is_number(hint):
                    print(f"accepted: {name} --{option}={value[:20]}")
    print(f"{tried} values tried")
    sys.exit()
