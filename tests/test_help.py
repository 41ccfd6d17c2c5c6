"""The help of every command: under its own name, what must be given first, in groups, and not in need of a reader."""

import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import genaffect_jax.compile_check.__main__ as compile_check
import genaffect_jax.export.__main__ as export
import genaffect_jax.prepare.__main__ as prepare
from genaffect_jax import cli, evaluate, sample, train

ROOT = Path(__file__).parents[1]
PRESET = f"--config={ROOT / 'configs' / 'avatar_tiny.py'}"
PREPARE = ("prompts", "photos", "arcface")
COMMANDS = [
    ("genaffect_jax.sample", sample.main, []),
    ("genaffect_jax.evaluate", evaluate.main, []),
    ("genaffect_jax.train", train.main, [PRESET]),
    ("genaffect_jax.compile_check", compile_check.main, [PRESET]),
    *(("genaffect_jax.prepare", prepare.main, [name]) for name in PREPARE),
    *(("genaffect_jax.export", export.main, [name]) for name in export.COMMANDS),
]
NAMES = [" ".join([module, *(w for w in words if not w.startswith("--"))]) for module, _, words in COMMANDS]
# Commands of the package, as a text may name them; `genaffect train` is the installed script.
NAMED = re.compile(r"(python -m )?\bgenaffect_jax\.(train|sample|evaluate|prepare|export|compile_check)\b(?=[ `'\"])")


def shown(main, argv, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def options(text: str) -> list[tuple[str, bool]]:
    """The options of a help text in their order, and whether each is required."""
    parts = re.split(r"\n[│ ] {1,2}(?=--\w|PATH )", text)[1:]
    return [(re.split(r"[ ,]", part)[0], "(required)" in part) for part in parts]


@pytest.mark.parametrize(("module", "main", "words"), COMMANDS, ids=NAMES)
def test_the_usage_names_the_command_as_it_was_called(module, main, words, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_program", None)
    # Run with -m, `__main__` is the module, or the package's `__main__`.
    name = f"{module}.__main__" if module.rpartition(".")[2] in ("prepare", "export", "compile_check") else module
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(name, None))
    usage = f"usage: python -m {' '.join([module, *(w for w in words if not w.startswith('--'))])} [-h]"
    assert shown(main, words, capsys).startswith(usage)


@pytest.mark.parametrize(("module", "main", "words"), COMMANDS, ids=NAMES)
def test_required_options_come_first(module, main, words, capsys):
    found = options(shown(main, words, capsys))
    required = [is_required for _, is_required in found]
    assert any(required) == (module != "genaffect_jax.sample"), found  # which needs --identity only without --add_to
    assert required == sorted(required, reverse=True), found


def test_what_a_set_is_made_of_comes_before_how_it_is_sampled(capsys):
    names = [name for name, _ in options(shown(sample.main, [], capsys))]
    assert names[:4] == ["--model", "--identity", "--expressions", "--out"]
    assert names.index("--frames") < names.index("--steps") < names.index("--consistency")
    names = [name for name, _ in options(shown(evaluate.main, [], capsys))]
    assert names[:2] == ["--out", "--model"]
    assert names.index("--diversity_people") < names.index("--steps")


def test_options_of_a_preset_come_in_groups_of_its_parts(capsys):
    groups = re.findall(r"\n(?:╭─)? (\S+) options\b", shown(train.main, [PRESET], capsys))
    assert groups[0] == "data"
    assert groups[-1] == "distributed"
    assert {"model", "model.mmdit", "flow", "train", "mesh"} <= set(groups)


def test_every_text_that_suggests_a_command_says_how_to_run_it():
    wrong = []
    for file in (*ROOT.glob("genaffect_jax/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if re.match(r"\s*(from|import) ", line) or "COMMANDS" in line:
                continue
            # A name alone in backticks or quotes is the module; followed by words, it is a command.
            for found in NAMED.finditer(line):
                before = line[: found.start()].rstrip()
                wraps = file.read_text().splitlines()[number - 2].rstrip().endswith("python -m")
                if line[found.end()] == " " and found[1] is None and not (wraps and not before.strip("\"' ")):
                    wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("words", [["-m", "genaffect_jax"], ["-m", "genaffect_jax.sample", "--help"]])
def test_help_that_nobody_reads_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")
