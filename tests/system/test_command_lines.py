"""The command lines refuse bad input at once, in helpful words, and leave nothing behind."""

import pytest

import genaffect_jax.export.__main__ as export
import genaffect_jax.prepare.__main__ as prepare
from genaffect_jax import evaluate, sample, train


def outcome(main, argv, capsys):
    """Exit status and everything printed."""
    try:
        status = main(argv)
    except SystemExit as e:
        status = e.code
    captured = capsys.readouterr()
    return status, " ".join((captured.out + captured.err).replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.batch_size", "-3"], "error: --train.batch_size -3: must be at least 1"),
        (["--model.mmdit.num_layers", "0"], "error: --model.mmdit.num_layers 0: must be at least 1"),
        (["--distributed.join_timeout", "0"], "error: --distributed.join_timeout 0: must be at least 1"),
        (["--mesh.tensor", "7"], "error: --mesh.tensor 7: must divide mmdit.num_attention_heads"),
        (["--train.lerning_rate", "1"], "Perhaps you meant: --train.learning_rate"),
        (["--data.source", "fodler"], "invalid choice 'fodler' for argument '--data.source'"),
        (["--train.steps", "many"], "invalid literal for int"),
        (["--config", "configs/none.py"], "--config configs/none.py: no such preset"),
    ],
)
def test_training_refuses_bad_options_before_any_work(options, words, preset, tmp_path, capsys):
    argv = ["--workdir", str(tmp_path / "run"), "--config", str(preset()), *options]
    status, text = outcome(train.main, argv, capsys)
    assert status == 2
    assert words in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_a_refused_setting_is_one_line(preset, tmp_path, capsys):
    argv = ["--workdir", str(tmp_path / "run"), "--config", str(preset()), "--train.steps", "0"]
    with pytest.raises(SystemExit) as ended:
        train.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --train.steps 0: must be at least 1\n"


@pytest.mark.parametrize(
    ("main", "argv", "words"),
    [
        (prepare.main, ["photos", "--root", "no", "--out", "x", "--models", "no"], "error: face models no: no such"),
        (prepare.main, ["photos", "--root", "no"], "--models"),
        (evaluate.main, ["--model", "no", "--out", "x"], "error: --model no: no run folder"),
        (evaluate.main, ["--model", "no", "--out", "x", "--people", "1"], "error: --people 1: must be at least 2"),
        (evaluate.main, ["--model", "no", "--out", "x", "--steps", "0"], "error: --steps 0: must be at least 1"),
        (evaluate.main, ["--model", "no"], "--out"),
        (export.main, ["merge", "--model", "no", "--out", "x"], "error: --model no: no run folder"),
        (export.main, ["lora", "--model", "no", "--out", "x.safetensors"], "error: --model no: no run folder"),
        (export.main, ["single-file", "--model", "no", "--out", "x"], "error: --out x: must end in .safetensors"),
        (export.main, ["single-file"], "--model"),
    ],
)
def test_the_other_commands_refuse_bad_options_too(main, argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, text = outcome(main, argv, capsys)
    assert status == 2
    assert words in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_training_needs_a_run_folder(preset, capsys):
    status, text = outcome(train.main, ["--config", str(preset())], capsys)
    assert status == 2
    assert "--workdir" in text


def test_a_preset_of_no_training_is_refused(tmp_path, capsys):
    preset = tmp_path / "other.py"
    preset.write_text("from genaffect_jax.config import DataConfig as config\n")
    status, text = outcome(train.main, ["--config", str(preset), "--workdir", str(tmp_path / "run")], capsys)
    assert status == 2
    assert "config() returned DataConfig, this command needs DenoiserRun or AutoencoderRun or EncoderRun" in text


def test_help_explains_fields_with_their_units(preset, capsys):
    status, text = outcome(train.main, ["--config", str(preset()), "--help"], capsys)
    assert status == 0
    assert "--data.image_size" in text
    assert "Side of the images, in pixels." in text


def test_the_folder_preset_asks_for_its_folder(tmp_path, capsys):
    argv = ["--config", "configs/folder_tiny.py", "--workdir", str(tmp_path / "run")]
    status, text = outcome(train.main, argv, capsys)
    assert status == 2
    assert "--data.root" in text


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--expressions", "joyy"], 2, "did you mean 'joy'"),
        (["--steps", "0"], 2, "error: --steps 0: must be at least 1"),
        (["--chunk", "0"], 2, "error: --chunk 0: must be at least 1"),
        (
            ["--consistency", "0.5", "--consistency_start", "30"],
            2,
            "error: --consistency_start 30: must be below steps, 24",
        ),
        (["--identity", "seed:-1"], 2, "seed:N needs a whole number"),
        (["--identity", "nobody.png"], 1, "nobody.png"),
    ],
)
def test_sampling_refuses_bad_input_and_leaves_no_partial_set(
    options, status, words, trained_workdir, tmp_path, capsys
):
    argv = ["--model", str(trained_workdir), "--identity", "seed:1", "--out", str(tmp_path / "set"), *options]
    found, text = outcome(sample.main, argv, capsys)
    assert (found, words in text) == (status, True), text
    assert not (tmp_path / "set").exists()


@pytest.mark.usefixtures("one_device")
def test_sampling_writes_a_set(trained_workdir, tmp_path, capsys):
    argv = ["--model", str(trained_workdir), "--identity", "seed:1", "--steps", "1", "--out", str(tmp_path / "set")]
    argv += ["--expressions", "joy,AU6=0.5,AU12=0.9,anger"]
    status, text = outcome(sample.main, argv, capsys)
    assert status == 0, text
    assert len(list((tmp_path / "set").glob("0*.png"))) == 3
    assert "sampled 3/3" in text  # no terminal here: lines instead of a bar
