"""Options of every command: files are no URLs, sizes can be read back, paths are printed as they are."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import genaffect_jax.compile_check.__main__ as compile_check
import genaffect_jax.export.__main__ as export
import genaffect_jax.prepare.__main__ as prepare
from genaffect_jax import cli, evaluate, sample, train
from genaffect_jax.config import AutoencoderRun, DenoiserRun, EncoderRun, from_json, to_json
from genaffect_jax.config.file_name import NAMES_FILES
from genaffect_jax.prepare import arcface, photos, prompts

PRESETS = {DenoiserRun: "sd35_medium", AutoencoderRun: "autoencoder_tiny", EncoderRun: "identity_encoder"}
PREPARE = {"prompts": prompts, "photos": photos, "arcface": arcface}
SD35_NEEDS = ("data.root", "model.autoencoder_weights", "model.transformer_weights", "text.embeddings")
CONFIGS = Path(__file__).parents[1] / "configs"


def names_files(hint: Any) -> bool:
    text = str(hint)
    return "Path" in text or NAMES_FILES in text


def path_options(kind: type, prefix: str = "") -> list[str]:
    """The options of a configuration class that name files, read from its types."""
    found, hints = [], get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += path_options(hint, f"{prefix}{field.name}.")
        elif names_files(hint):
            found.append(prefix + field.name)
    return found


def required(kind: type) -> list[str]:
    return [
        f.name
        for f in dataclasses.fields(kind)
        if f.name != "run" and f.default is f.default_factory is dataclasses.MISSING
    ]


def cases():
    """(main, words before the options, options that must be given, option)."""
    for main, words, kind in (
        (sample.main, [], sample.Arguments),
        (evaluate.main, [], evaluate.Arguments),
        *((export.main, [name], module.Arguments) for name, module in export.COMMANDS.items()),
        *((prepare.main, [name], module.Arguments) for name, module in PREPARE.items()),
    ):
        for option in path_options(kind):
            yield main, words, required(kind), option
    for kind, preset in PRESETS.items():
        words = [f"--config={CONFIGS / preset}.py"]
        for option in (*path_options(train.Arguments), *path_options(kind)):
            yield train.main, words, [*required(train.Arguments), *(SD35_NEEDS if "sd35" in preset else ())], option
    for option in path_options(compile_check.Arguments):
        yield compile_check.main, [f"--config={CONFIGS / 'avatar_tiny.py'}"], required(compile_check.Arguments), option


CASES = [
    pytest.param(*case, id=f"{case[0].__module__}-{'-'.join(Path(w).stem for w in case[1])}-{case[3]}")
    for case in cases()
]


def outcome(main, argv, capsys):
    try:
        status = main(argv)
    except SystemExit as e:
        status = e.code
    return status, capsys.readouterr().err


def test_options_that_name_files_are_found_by_their_types():
    found = {option for *_, option in cases()}
    assert {
        "out",
        "workdir",
        "data.root",
        "shared_mask",
        "model.autoencoder_weights",
        "identity",
        "text.embeddings",
    } <= found
    assert len(CASES) > 50


@pytest.mark.parametrize(("main", "words", "given", "option"), CASES)
def test_a_url_is_refused_at_once_naming_the_option(main, words, given, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    positional = {"folder": ["x"]} if words == ["from-torch"] else {}
    preset = any(word.startswith("--config=") for word in words)
    argv = list(words)
    for name in dict.fromkeys([*given, option]):
        if preset and name == "config" and name != option:
            continue
        value = "gs://bucket/x" if name == option else "x"
        argv += [value] if name in positional else [f"--{name}={value}"]
    if option == "model.identity_encoder":  # an encoder needs its width, which is checked before the file
        argv.append("--model.conditioning.identity_embedding=8")
    status, error = outcome(main, argv, capsys)
    assert status == 2, error
    assert error.startswith(f"error: --{option} gs://bucket/x: is a URL"), error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("avatar_tiny", ["--model.mmdit.num_attention_heads", "4", "--model.mmdit.in_channels", "8"]),
        ("avatar_s", ["--model.mmdit.attention_head_dim", "32"]),
        ("identity_encoder", ["--encoder.width", "128"]),
    ],
)
def test_what_is_trained_with_changed_sizes_can_be_read_back(preset, options, tmp_path):
    # Fields that others decide are stored too, and compared when a run folder is read.
    if "in_channels" in options[-2]:
        options = [*options, "--model.autoencoder.latent_channels", "8"]
    words = ["--config", str(CONFIGS / f"{preset}.py"), "--workdir", str(tmp_path), *options]
    run = cli.parse_with_preset(train.Arguments, list(train.TRAININGS), words, Path("none")).run
    assert from_json(type(run), to_json(run)) == run
    if preset == "avatar_tiny":
        network = run.model.mmdit
        assert (network.width, network.caption_projection_dim, network.out_channels) == (4 * 64, 4 * 64, 8)


def test_paths_are_printed_as_they_are_even_with_richs_own_notation(capsys: pytest.CaptureFixture[str]) -> None:
    paths = "out/[red]/[/x]/:joy:/[link=a]b", "out/[/]"

    def work(console) -> bool:
        for path in paths:
            console.print(f"{path}: written", soft_wrap=True)
        return True

    assert cli.run(work) == 0
    assert capsys.readouterr().err.splitlines() == [f"{path}: written" for path in paths]
