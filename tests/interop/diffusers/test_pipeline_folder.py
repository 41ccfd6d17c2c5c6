"""Text encoders in a pipeline folder: which files count, and what is said when that is not clear."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.folders import component_folder
from genaffect_jax.interop.diffusers.pipeline_folder import text_parts
from genaffect_jax.interop.diffusers.weight_files import variants


def pipeline(root: Path, *weights: str) -> Path:
    """A pipeline whose first text encoder has these files."""
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    for part in parts:
        (root / part).mkdir(parents=True)
    index = {**{part: ["transformers", "X"] for part in parts}, "text_encoder_3": None}
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "text_encoder" / "config.json").write_text("{}")
    for name in weights:
        if name.endswith(".json"):
            (root / "text_encoder" / name).write_text(json.dumps({"weight_map": {}}))
        else:
            save_file({"x": np.zeros(1, np.float32)}, root / "text_encoder" / name)
    return root


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (("model.safetensors", "model.safetensors.index.json"), "has both model.safetensors and .*index.json"),
        (("model.fp16.safetensors",), "variant: .*text_encoder has weights of the variant fp16 alone"),
        ((), "text_encoder: has neither model.safetensors nor model.safetensors.index.json .has config.json"),
    ],
)
def test_weights_that_are_not_clear_are_refused(weights, said, tmp_path):
    with pytest.raises(WeightsError, match=said):
        text_parts(pipeline(tmp_path / "pipe", *weights))


def test_a_download_of_single_components_needs_no_model_index(tmp_path):
    (tmp_path / "transformer").mkdir()
    assert component_folder(tmp_path, "transformer") == tmp_path / "transformer"
    (tmp_path / "transformer" / "config.json").write_text("{}")
    assert component_folder(tmp_path / "transformer", "transformer") == tmp_path / "transformer"
    (tmp_path / "config.json").write_text("{}")  # the folder is a component itself
    assert component_folder(tmp_path, "transformer") == tmp_path


def test_a_folder_that_is_neither_a_component_nor_a_pipeline_says_what_it_holds(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "notes.txt").touch()
    words = r"has neither config.json of a transformer nor the transformer/ of a pipeline \(has notes.txt, vae/\)"
    with pytest.raises(WeightsError, match=words):
        component_folder(tmp_path, "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"transformer: no such folder; the pipeline has model_index.json, notes"):
        component_folder(tmp_path, "transformer")
    with pytest.raises(WeightsError, match=r"notes.txt: is no folder"):
        component_folder(tmp_path / "notes.txt", "transformer")


def test_text_encoders_without_a_model_index_are_read_if_it_is_clear_which_there_are(tmp_path):
    root = pipeline(tmp_path / "pipe", "model.safetensors")
    (root / "model_index.json").unlink()
    words = r"model_index.json: no such file, and of .* the folder has text_encoder, text_encoder_2: name the folder"
    with pytest.raises(WeightsError, match=words):  # without T5 the prompts would be others
        text_parts(root)
    for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        tokenizer = root / encoder.replace("text_encoder", "tokenizer")
        for part in (root / encoder, tokenizer):
            part.mkdir(exist_ok=True)
        (root / encoder / "config.json").write_text("{}")
        save_file({"x": np.zeros(1, np.float32)}, root / encoder / "model.safetensors")
        (tokenizer / "tokenizer.json").write_text("{}")
    parts = text_parts(root)
    assert parts.t5
    assert "text_encoder_3/model.safetensors" in parts.files


@pytest.mark.parametrize(
    "names",
    [
        ["model.fp16.safetensors"],
        ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"],
        ["model.safetensors.index.fp16.json", "model-00001-of-00001.fp16.safetensors"],
    ],
)
def test_a_variant_is_read_by_its_name_and_only_then(names, tmp_path):
    root = pipeline(tmp_path / "pipe", *names)
    if len(names) > 1:
        (root / "text_encoder" / names[0]).write_text(json.dumps({"weight_map": {"x": names[1]}}))
    with pytest.raises(WeightsError, match=r"has weights of the variant fp16 alone, .*name the one to read"):
        text_parts(root)
    with pytest.raises(WeightsError, match=r"variant=bf16: .*has no model.bf16.safetensors .*variants there: fp16\)"):
        text_parts(root, "bf16")
    with pytest.raises(WeightsError, match="must be letters, digits"):
        text_parts(root, "../fp16")
    for part in ("text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(root / "text_encoder", root / part, dirs_exist_ok=True)
        (root / part / "tokenizer.json").write_text("{}")
    (root / "transformer").mkdir()
    (root / "transformer" / "config.json").write_text(json.dumps({"joint_attention_dim": 8}))
    files = text_parts(root, "fp16").files
    assert all(f"text_encoder/{name}" in files for name in names)


def test_variants_are_told_from_other_files():
    names = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.onnx"]
    names += ["model.fp16.safetensors", "model.ema-00001-of-00002.safetensors", "model-00002-of-00002.bf16.safetensors"]
    names += ["model.safetensors.index.non_ema.json", "pytorch_model.fp16.bin", "other.int8.safetensors"]
    assert variants(names, "model") == ["bf16", "ema", "fp16", "non_ema"]
