"""The run folder: one place for its names, one run in it, and what may change when that run continues."""

import ast
import dataclasses
import os
from pathlib import Path

import pytest

import genaffect_jax
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AutoencoderRun, DenoiserRun, MeshConfig, from_json, to_json
from genaffect_jax.errors import ConfigError

PACKAGE = Path(genaffect_jax.__file__).parent
# Other folders that hold files of the same names: a diffusers component, and the images that `prepare photos` wrote.
ELSEWHERE = {
    "avatars": {"pipeline.py"},  # an argument
    "config.json": {
        "interop/diffusers/folders.py",
        "interop/diffusers/pipeline_folder.py",
        "interop/image_encoders.py",  # a folder of transformers
        "interop/onnx/sampler.py",  # runs beside exported graphs, without this package
    },
    "rejected.jsonl": {"data/photos/align_folder.py"},
    "report.json": {"evaluation/comparison.py"},  # in the folder of an evaluation
}


def names() -> set[str]:
    """Every name in a run folder, the suffixes of caches and trained encoders left out."""
    properties = [name for name, value in vars(RunDir).items() if isinstance(value, property)]
    run_dir = RunDir(Path("run"))
    values = [getattr(run_dir, name) for name in properties]
    return {value.name for value in values if isinstance(value, Path)} | {run_dir.sheet(1).parent.name}


def spelled(file: Path) -> set[str]:
    """The names that a module spells, whole or as the beginning of a longer one, outside of docstrings."""
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }
    return {name for name in names() for text in strings if text in (name, f"{Path(name).stem}-")}


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_no_other_module_spells_the_name_of_a_file_of_the_run_folder():
    assert {"config.json", "checkpoints", "sheets", "features.npy"} <= names()
    assert spelled(PACKAGE / "checkpoints" / "run_dir.py") == names()
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for name in spelled(file):
            found.setdefault(name, set()).add(file.relative_to(PACKAGE).as_posix())
    for name, files in found.items():
        assert files == {"checkpoints/run_dir.py"} | ELSEWHERE.get(name, set()), name


def quiet(_: str) -> None:
    raise AssertionError("nothing was replaced")


def begun(path: Path, config) -> RunDir:
    """A run folder with a checkpoint, as far as its name goes."""
    run_dir = RunDir.create(path, config)
    (run_dir.checkpoints / "3").mkdir(parents=True)
    return run_dir


def test_another_configuration_cannot_take_over_a_run_folder_with_a_checkpoint(tiny_config, tmp_path):
    run_dir = begun(tmp_path / "run", tiny_config)
    assert run_dir == RunDir(tmp_path / "run")
    assert RunDir.create(run_dir.path, with_train(tiny_config, steps=99)) == run_dir
    workers = dataclasses.replace(tiny_config.data, workers=3)
    RunDir.create(
        run_dir.path, dataclasses.replace(tiny_config, data=workers, mesh=MeshConfig(data=1, fsdp=4, tensor=2))
    )
    before = run_dir.config.read_text()
    with pytest.raises(ConfigError, match=r"workdir=.*train\.learning_rate=0\.001, now 0\.5"):
        RunDir.create(run_dir.path, with_train(tiny_config, learning_rate=0.5))
    assert run_dir.config.read_text() == before


@pytest.mark.parametrize("left", ["learning_rate", "another training", "torn", "another version"])
def test_until_there_is_a_checkpoint_other_settings_replace_the_old_ones_and_say_so(tiny_config, tmp_path, left):
    run_dir = RunDir.create(tmp_path / "run", tiny_config)
    if left == "learning_rate":
        RunDir.create(run_dir.path, tiny_config, quiet)
        run_dir.config.write_text(to_json(with_train(tiny_config, learning_rate=0.5)))
    elif left == "another training":
        run_dir.config.write_text(to_json(AutoencoderRun()))
    elif left == "another version":
        run_dir.config.write_text(run_dir.config.read_text().replace('"seed"', '"sead"'))
    else:
        run_dir.config.write_text(run_dir.config.read_text()[:100])
    (run_dir.checkpoints / "4.orbax-checkpoint-tmp").mkdir(parents=True)  # half-written: nothing was learned
    told = []
    assert RunDir.create(run_dir.path, tiny_config, told.append) == run_dir
    assert len(told) == 1
    assert "no checkpoint yet, so the settings of an earlier start are replaced" in told[0]
    assert "\n" not in told[0]
    assert ("train.learning_rate=0.5, now 0.001" in told[0]) == (left == "learning_rate")
    assert from_json(DenoiserRun, run_dir.config.read_text()) == tiny_config


@pytest.mark.parametrize("content", ['{"_class_name": "AutoencoderKL"}', "{}", '{"model_type": "clip", "dtype": "f"}'])
def test_the_configuration_of_another_program_is_not_written_over(tiny_config, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"workdir=.*holds a config.json of another program .*name a new or empty"):
        RunDir.create(tmp_path, tiny_config, pytest.fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.json", content)]


def test_damaged_settings_of_a_run_with_a_checkpoint_are_one_error_that_names_the_file(tiny_config, tmp_path):
    run_dir = begun(tmp_path / "run", tiny_config)
    for content in (b"{ torn", b"\xff\xfe", b"[]", b"null"):
        run_dir.config.write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json: not the settings of a run of this kind"):
            RunDir.create(run_dir.path, tiny_config)
        assert run_dir.config.read_bytes() == content
    run_dir.config.unlink()
    run_dir.config.mkdir()
    with pytest.raises(ConfigError, match=r"config\.json: Is a directory"):
        RunDir.create(run_dir.path, tiny_config)


@pytest.mark.parametrize("kind", ["the folder", "the folder above", "the target of a link"])
def test_a_path_that_is_not_utf8_is_refused_before_anything_is_written(kind, tiny_config, tmp_path, monkeypatch):
    bad = tmp_path / os.fsdecode(b"M\xfcller")
    bad.mkdir()
    monkeypatch.chdir(bad)
    path = {"the folder": bad, "the folder above": Path("w"), "the target of a link": tmp_path / "link"}[kind]
    (tmp_path / "link").symlink_to(bad)
    with pytest.raises(ConfigError, match=r"workdir=.*M.xfcller.*not UTF-8"):
        RunDir.create(path, tiny_config)
    with pytest.raises(ConfigError, match=r"model=.*M.xfcller.*not UTF-8"):
        RunDir.open(path)
    assert list(bad.iterdir()) == []


def test_a_folder_without_checkpoints_is_no_run_folder_and_is_left_alone(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"no run folder of a training \(it has no checkpoints/\)") as raised:
            RunDir.open(folder)
        assert raised.value.on_command_line.startswith(f"--model {folder}: no run folder")
    assert list(tmp_path.iterdir()) == []


def test_components_are_the_files_that_a_sampler_reads_beside_a_checkpoint(trained_workdir, tmp_path):
    assert RunDir.open(trained_workdir).components == [trained_workdir / "autoencoder.safetensors"]
    run_dir = RunDir(tmp_path)
    for file in (run_dir.prompts, run_dir.onnx_expression_encoder, tmp_path / "expression_encoder.onnx"):
        file.touch()
    for file in (run_dir.metrics, run_dir.features, run_dir.encoder_weights("mine"), run_dir.report):
        file.touch()
    expected = ["expression_encoder.json", "expression_encoder.onnx", "prompts.safetensors"]
    assert [file.name for file in run_dir.components] == expected
