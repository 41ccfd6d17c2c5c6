"""`export onnx` refuses before any work; no PyTorch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from genaffect_jax.errors import ConfigError
from genaffect_jax.export.__main__ import main
from genaffect_jax.export.onnx import FORMAT, export_onnx

MODEL = Path("no_run_folder")


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_that_the_exporter_does_not_write_is_refused(opset, tmp_path):
    with pytest.raises(ConfigError, match=f"opset={opset}: must be 18 to 23"):
        export_onnx(MODEL, tmp_path / "out", opset=opset)


@pytest.mark.parametrize(
    ("name", "content", "overwrite", "message"),
    [
        ("onnx.json", json.dumps({"format": FORMAT}), False, "is not empty; name a new folder, or set overwrite"),
        ("onnx.json", json.dumps({"format": "another"}), True, "holds other files than an export wrote"),
        ("onnx.json", "{", True, "holds other files than an export wrote"),
        ("model_index.json", json.dumps({"_class_name": "GenAffectPipeline"}), True, "holds other files"),
    ],
)
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(name, content, overwrite, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        export_onnx(MODEL, tmp_path, overwrite=overwrite)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: content}


def test_a_file_is_refused_as_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        export_onnx(MODEL, tmp_path / "out", overwrite=True)


def test_missing_libraries_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name in ("onnxscript", "torch") else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert main(["onnx", "--model", str(MODEL), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "torch, " in error
    assert "onnxscript" in error
    assert "pip install -c constraints.txt -e '.[torch]'" in error
    assert not (tmp_path / "out").exists()
