"""Every option of every command with values that no program can use: one line that names the option, status 2.

The suite tries a random part of the values, another one where `GENAFFECT_FUZZ_SEED` is set. As a program
(`python tests/system/test_option_values.py`) it tries all of them, which takes minutes, and prints counts and faults.
"""

import collections
import contextlib
import dataclasses
import io
import os
import random
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import genaffect_jax.compile_check.__main__ as compile_check
import genaffect_jax.export.__main__ as export
import genaffect_jax.prepare.__main__ as prepare
from genaffect_jax import cli, evaluate, sample, train
from genaffect_jax.config import AutoencoderRun, DenoiserRun, EncoderRun
from genaffect_jax.prepare import arcface, photos, prompts

CONFIGS = Path(__file__).parents[2] / "configs"
UNUSABLE = ("nan", "1e400", str(10**12), "-" + str(10**12))
MORE = ("inf", "-inf", "-1", "0", "", "x", "9" * 400, "0.5", "true", "[red]", "None", "\x00", str(10**30))
TEXTS = ("a\nb", "\x1b[31m", "\udcfc", "/", "..", "a" * 300, "a/b" * 2000, "gs://b/x", "~nobody_here/x", " ")
SEEDS = ("seed", "train.seed")
Command = Callable[[list[str]], int]
RUN = cli.run


def options(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and types of the leaf options of a configuration."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init and dataclasses.is_dataclass(hints[field.name]):
            yield from options(hints[field.name], f"{prefix}{field.name}.")
        elif field.init:
            yield f"{prefix}{field.name}", hints[field.name]


def commands() -> Iterator[tuple[str, Command, list[str], Any]]:
    """Name, main function, required options and configuration of every command."""
    for preset, kind in (
        ("avatar_tiny", DenoiserRun),
        ("autoencoder_tiny", AutoencoderRun),
        ("identity_encoder", EncoderRun),
    ):
        yield preset, train.main, ["--config", str(CONFIGS / f"{preset}.py"), "--workdir", "nowhere"], kind
    yield "sample", sample.main, ["--model", "nowhere", "--identity", "seed:1", "--out", "nowhere"], sample.Arguments
    yield "evaluate", evaluate.main, ["--model", "nowhere", "--out", "nowhere"], evaluate.Arguments
    compiled = ["--config", str(CONFIGS / "avatar_tiny.py"), "--topology", "nothing:1"]
    yield "compile_check", compile_check.main, compiled, compile_check.Arguments
    yield "compile_check of a preset", compile_check.main, compiled, DenoiserRun
    for name, module in export.COMMANDS.items():
        required = ["nowhere"] if name == "from-torch" else ["--model", "nowhere"]
        yield f"export {name}", export.main, [name, *required, "--out", "nowhere.safetensors"], module.Arguments
    config = str(CONFIGS / "sd35_medium.py")
    for name, module, required in (
        ("prompts", prompts, ["--config", config, "--pipeline", "nowhere", "--out", "nowhere.safetensors"]),
        ("photos", photos, ["--root", "nowhere", "--out", "nowhere", "--models", "nowhere"]),
        ("arcface", arcface, ["--weights", "nowhere", "--licence", "x", "--out", "nowhere.safetensors"]),
    ):
        yield f"prepare {name}", prepare.main, [name, *required], module.Arguments


def trials(name: str, required: list[str], kind: Any) -> list[list[str]]:
    """Command lines with one value each that most options cannot have."""
    tried = []
    for option, hint in options(kind):
        if option in ("run", "folder"):  # the preset as a whole; a positional argument
            continue
        values = (*UNUSABLE, *MORE, *(() if is_number(hint) else TEXTS))
        tried += [[*required, f"--{option}={value}"] for value in values]
        if name.startswith("export from-torch"):
            tried += [["from-torch", value, "--out", "nowhere"] for value in (*MORE, *TEXTS)]
    return tried


def fault_of(main: Command, argv: list[str], runs: bool) -> tuple[str, str | None]:
    """`accepted` or `refused`, and what is wrong with how the command ended, if anything is."""
    before = sorted(os.listdir())
    status, said = outcome(main, argv)
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    if sorted(os.listdir()) != before:
        return "accepted", f"left something: {sorted(os.listdir())}"
    if status == 0:
        return "accepted", "did something" if runs else None
    if status not in (1, 2):
        return "refused", f"{status!r}"
    if any(character in said for character in "\x1b\r\x00"):
        return "refused", f"a control character: {said!r}"
    if "Unrecognized options" in said and "Traceback" not in said:
        return "refused", None  # a switch takes no value; the parser suggests options
    return "refused", None if len(lines) == said.rstrip().count("\n") + 1 == 1 else f"not one line: {said!r}"


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
    ("name", "main", "required", "kind"),
    [c for c in commands() if not c[0].endswith("of a preset")],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_numbers_that_no_program_can_use_are_refused_in_one_line(name, main, required, kind, tmp_path):
    numbers = [(option, hint) for option, hint in options(kind) if is_number(hint)]
    assert len(numbers) > 15 or " " in name or name == "compile_check"
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


@pytest.mark.parametrize("part", range(4))
def test_no_value_of_any_option_ends_in_a_traceback_or_leaves_a_folder(part, tmp_path):
    choose = random.Random(f"{os.environ.get('GENAFFECT_FUZZ_SEED', 0)} {part}")
    for name, main, required, kind in list(commands())[part::4]:
        for argv in choose.sample(tried := trials(name, required, kind), min(40, len(tried))):
            _, fault = fault_of(main, argv, runs=False)
            assert fault is None, (name, argv, fault)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", range(2))
def test_commands_without_a_model_say_so_in_one_line_whatever_else_is_wrong(part, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "run", RUN)
    choose = random.Random(f"{os.environ.get('GENAFFECT_FUZZ_SEED', 0)} {part}")
    for name, main, required, kind in list(commands())[part::2]:
        if main is train.main:
            continue  # it needs no model, and would train
        for argv in choose.sample(tried := trials(name, required, kind), min(25, len(tried))):
            _, fault = fault_of(main, argv, runs=True)
            assert fault is None, (name, argv, fault)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e400"])
def test_a_crop_is_three_numbers_inside_the_image(position, value):
    crop = ["0.1", "0.1", "0.5"]
    crop[position] = value
    argv = ["arcface", "--weights", "w", "--licence", "l", "--out", "o", "--crop", *crop]
    status, said = outcome(prepare.main, argv)
    assert (status, said.count("\n"), "crop" in said) == (2, 1, True), said


@pytest.mark.parametrize("words", [["--out="], ["--out", ""]])
def test_a_path_left_empty_is_not_the_current_folder(words):
    status, said = outcome(sample.main, ["--model", "m", "--identity", "seed:1", *words])
    assert (status, said) == (2, "error: --out: is empty; name a file or folder (. is the current folder)\n")
    status, said = outcome(train.main, ["--config", str(CONFIGS / "avatar_tiny.py"), *words, "--workdir="])
    assert status == 2
    assert outcome(sample.main, ["--model", "m", "--identity", "seed:1", "--out", ".", "--expressions="])[0] == 0


def main() -> int:
    """Tries everything; returns the exit status."""
    counts: collections.Counter[str] = collections.Counter()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for runs in (False, True):
            cli.run = RUN if runs else lambda work, distributed=None: 0  # type: ignore[assignment]
            for name, command, required, kind in commands():
                if runs and command is train.main:
                    continue
                for argv in trials(name, required, kind):
                    result, fault = fault_of(command, argv, runs)
                    counts[f"{'run' if runs else 'parsed'}, {result}"] += 1
                    if fault is not None:
                        faults += 1
                        print(f"{name} {argv[-1][:60]!r}: {fault[:300]}", flush=True)
    print(f"{counts.total()} command lines ({dict(counts)}): {faults} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
