"""Models carry the settings that they are sampled with where nothing else is asked for."""

import json
import re
import shutil

import pytest

from genaffect_jax import Pipeline, sample
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import SamplingDefaults, to_json
from genaffect_jax.errors import ConfigError

NO_STEPS = f'{{"sampling": {to_json(SamplingDefaults()).replace("24", "0")}}}'


def test_a_model_is_sampled_with_its_own_defaults_unless_something_else_is_asked_for(trained_workdir, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained_workdir, folder)
    run_dir = RunDir(folder)
    stored = json.loads(run_dir.config.read_text())
    stored["sampling"] |= {"steps": 3, "guidance_expression": 1.0}
    run_dir.config.write_text(json.dumps(stored))

    settings = Pipeline.load(folder)("seed:1", "joy").settings
    assert (settings["steps"], settings["guidance_expression"]) == (3, 1.0)
    assert Pipeline.load(folder)("seed:1", "joy", steps=2).settings["steps"] == 2

    common = ["--model", str(folder), "--expressions", "joy"]
    for out, more, steps in (("a", [], 3), ("b", ["--steps", "1"], 1)):
        assert sample.main([*common, "--identity", "seed:1", "--out", str(tmp_path / out), *more]) == 0
        assert json.loads((tmp_path / out / "set.json").read_text())["steps"] == steps
    # Nothing of these is an option that the set of add_to already decides.
    assert sample.main(["--model", str(folder), "--expressions", "fear", "--add_to", str(tmp_path / "a")]) == 0
    refused = ["--model", str(folder), "--expressions", "anger", "--add_to", str(tmp_path / "a"), "--steps", "24"]
    assert sample.main(refused) == 2
    assert "--steps: the set of add_to decides this" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sample.main(["--help", f"--model={folder}"])
    assert re.search(
        r"Denoising steps, at least 1\.\s.*\(default: 3\)", " ".join(capsys.readouterr().out.split()).replace("│", "")
    )


@pytest.mark.parametrize(("content", "words"), [("{", "damaged"), (NO_STEPS, "must be at least 1"), ("[]", "damaged")])
def test_defaults_that_cannot_be_read_are_named(trained_workdir, tmp_path, content, words, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained_workdir, folder)
    RunDir(folder).config.write_text(content)
    with pytest.raises(ConfigError, match=words):
        Pipeline.load(folder)
    with pytest.raises(SystemExit) as ended:
        sample.main(["--model", str(folder), "--identity", "seed:1", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()
