"""The command lines refuse bad input at once, in helpful words, and leave nothing behind."""

import pytest

import genaffect_jax.export.__main__ as export
import genaffect_jax.prepare.__main__ as prepare
from genaffect_jax import evaluate, sample, train
from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.io.image_grid import write_png


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
        (
            evaluate.main,
            ["--model", "no", "--out", "x", "--data", "folder:no"],
            "error: --data folder:no: no such folder",
        ),
        (evaluate.main, ["--model", "no", "--out", "x", "--data", "photos"], "must be procedural or folder:DIR"),
        (evaluate.main, ["--model", "no", "--out", "x", "--data", "folder:"], "must be procedural or folder:DIR"),
        (evaluate.main, ["--model", "no", "--out", "x", "--data", "folder:."], "error: --out x: lies in ."),
        (evaluate.main, ["--model", "no", "--out", "x", "--align", "face"], "error: --align face: is for images in a"),
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


@pytest.mark.parametrize("kind", ["foreign", "file", "link in a circle"])
def test_a_folder_that_takes_no_set_is_refused_before_the_model_is_read(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample.Pipeline, "load", lambda *_, **__: pytest.fail("the model was read"))
    out = tmp_path / "out"
    if kind == "foreign":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        (out / "set.json").write_text("{}")
        words = "set.json: has no model"
    elif kind == "file":
        out.write_text("mine")
        words = "is a file"
    else:
        out.symlink_to("out")
        words = "is a link that leads in a circle"
    argv = ["--model", "m", "--identity", "seed:1", "--expressions", "joy", "--out", str(out)]
    status, text = outcome(sample.main, argv, capsys)
    assert (status, words in text, text.count("error:")) == (2, True, 1), text
    assert kind != "foreign" or (out / "thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("labels", "options", "status", "words"),
    [
        ((), [], 1, "faces: no images found (looked for <identity>/<expression>[_n] folders)"),
        (("joy",), [], 1, "0 of 2 people can be evaluated, must be at least 2; left out: fewer than 2 different "),
        (("neutral", "joy"), ["--align", "face"], 2, "--face_models: align 'face' needs the folder of an insightface"),
        (("neutral", "joy"), ["--expression_evaluator", "no.json"], 1, "error: no.json: no such file"),
        (
            ("neutral", "joy"),
            ["--expression_evaluator", "package:identity_evaluator"],
            1,
            "one of expression is needed",
        ),
    ],
)
def test_evaluating_a_folder_refuses_bad_input_in_one_line_and_writes_nothing(
    labels, options, status, words, trained_workdir, tmp_path, capsys
):
    folder = face_folder(tmp_path / "faces", labels)
    argv = ["--model", str(trained_workdir), "--data", f"folder:{folder}", "--out", str(tmp_path / "out"), *options]
    found, text = outcome(evaluate.main, argv, capsys)
    assert (found, words in text) == (status, True), text
    assert text.count("error:") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_device")
def test_evaluating_a_folder_writes_a_report_and_names_the_files_it_could_not_read(trained_workdir, tmp_path, capsys):
    folder = face_folder(tmp_path / "faces", ("neutral", "joy"))
    (folder / "p1" / "fear.png").write_bytes(b"torn")
    argv = ["--model", str(trained_workdir), "--data", f"folder:{folder}", "--out", str(tmp_path / "out")]
    argv += ["--steps", "1", "--dial_people", "0"]
    status, text = outcome(evaluate.main, argv, capsys)
    assert status == 0, text
    assert "2 of 2 people in the folder" in text
    assert "p1/fear.png: not an image" in text
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Left out: not an image" in page
    assert "(p1/fear.png)" in page
    face_folder(tmp_path / "faces", ("anger",))
    status, text = outcome(evaluate.main, argv, capsys)
    assert status == 2
    assert "holds an evaluation with another data" in text


def face_folder(root, labels):
    """An image folder of two people with these expressions, without images if there are none."""
    root.mkdir(exist_ok=True)
    for person in range(2):
        for label in labels:
            image = render(sample_identity(person), parse_expression(label).vector, 32)
            write_png(image, root / f"p{person}" / f"{label}.png")
    return root


@pytest.mark.usefixtures("one_device")
def test_sampling_writes_a_set(trained_workdir, tmp_path, capsys):
    argv = ["--model", str(trained_workdir), "--identity", "seed:1", "--steps", "1", "--out", str(tmp_path / "set")]
    argv += ["--expressions", "joy,AU6=0.5,AU12=0.9,anger"]
    status, text = outcome(sample.main, argv, capsys)
    assert status == 0, text
    assert len(list((tmp_path / "set").glob("0*.png"))) == 3
    assert "sampling: 3 of 3" in text  # no terminal here: lines instead of a bar
