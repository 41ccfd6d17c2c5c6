"""Names with escape sequences, line ends and bytes that are not UTF-8: one line, and nothing reaches a terminal raw."""

import io
import os
import sys
import unicodedata

import pytest

import genaffect_jax.compile_check.__main__ as compile_check
import genaffect_jax.export.__main__ as export
import genaffect_jax.prepare.__main__ as prepare
from genaffect_jax import evaluate, sample, train
from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.data.sources.folder import open_folder
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.io.image_grid import write_png

NAMES = ["\x1b[31mred", "a\rb", "a\nb", "a\x9b2Jb", "a\u2028b", "\u202egnp", "a\x07\x08\x7f", "\x1b]0;title\x07"]
UNDECODED = [os.fsdecode(name) for name in (b"M\xfcller", b"\xff\xfe", b"a\x80b", b"\xed\xa0\x80", b"\xc3")]


def raw(text):
    """Characters that a terminal would obey."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp", "Cf") and c != "\n"]


def commands(name):
    """Command lines that fail at what is called so."""
    yield train.main, ["--config", name, "--workdir", "w"]
    yield train.main, ["--workdir", "w", "--data.source", name]
    yield train.main, ["--workdir", "w", f"--{name}", "1"]
    yield train.main, ["--workdir", "w", "--train.steps", name]
    yield sample.main, ["--model", name, "--identity", "seed:1", "--out", "o"]
    yield sample.main, ["--model", "m", "--identity", name, "--out", "o"]
    yield sample.main, ["--model", "m", "--identity", "seed:1", "--out", "o", "--expressions", f"joy,{name}"]
    yield sample.main, ["--model", "m", "--add_to", name, "--expressions", "joy"]
    yield evaluate.main, ["--model", name, "--out", "o"]
    yield evaluate.main, ["--model", "m", "--out", "o", "--data", f"folder:{name}"]
    yield export.main, ["diffusers", "--model", name, "--out", "o"]
    yield export.main, ["from-torch", name, "--out", "o"]
    yield export.main, ["lora", "--model", "m", "--out", name]
    yield prepare.main, ["photos", "--root", "r", "--out", "o", "--models", name]
    yield prepare.main, ["arcface", "--weights", name, "--licence", "l", "--out", "o.safetensors"]
    yield prepare.main, ["prompts", "--config", name, "--pipeline", "p", "--out", "o"]
    yield compile_check.main, ["--config", name, "--topology", "v5e:2x2"]
    yield compile_check.main, ["--topology", name]


class Terminal(io.StringIO):
    """Says that it is a terminal, so that colours would be printed."""

    def isatty(self):
        return True


def said_by(main, argv, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    try:
        status = main(argv)
    except SystemExit as e:
        status = e.code
    return status, stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("name", NAMES)
def test_control_characters_in_an_argument_do_not_reach_the_terminal(name, stream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for main, argv in commands(name):
        status, said = said_by(main, argv, monkeypatch, stream())
        assert status in (1, 2), (argv, said)
        assert raw(said) == [], (argv, said)
        assert said.startswith("error:") == (said.count("\n") == 1) or "usage" in said or "╭" in said, (argv, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", UNDECODED)
def test_an_argument_that_is_not_utf8_is_refused_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for main, argv in commands(name):
        status, said = said_by(main, argv, monkeypatch, io.StringIO())
        assert (status, said.count("\n"), raw(said)) == (2, 1, []), (argv, said)
        assert (said.startswith("error: "), "not UTF-8" in said) == (True, True), (argv, said)
    for option in ("--workdir=", "--workdir=sub/"):
        status, said = said_by(train.main, [f"{option}{name}"], monkeypatch, io.StringIO())
        assert (status, "not UTF-8; rename" in said) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_people_are_shown_escaped(name, tmp_path, capsys):
    root = tmp_path / f"photos {name}"
    image = render(sample_identity(0), parse_expression("joy").vector, 32)
    for person in (f"p{name}", f"q{name}"):
        for word in ("joy", "fear"):
            write_png(image, root / person / f"{word}.png")
        (root / person / f"anger{name}.png").write_bytes(b"torn")
    source = open_folder(root, 32, 0.9, None)
    assert len(source.examples) == 4
    *_, shown = capsys.readouterr().err.split("\n")[:-1]
    assert ("2 rejected" in shown, raw(shown)) == (True, []), shown
    argv = ["--config", "configs/folder_tiny.py", "--workdir", str(tmp_path / "w"), "--data.root", str(root)]
    status = train.main([*argv, "--data.max_rejected", "0.1"])
    *_, said = capsys.readouterr().err.split("\n")[:-1]
    assert (status, said.startswith("error:"), raw(said)) == (1, True, []), said
