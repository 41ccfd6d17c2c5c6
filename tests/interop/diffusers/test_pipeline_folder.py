"""Text encoders in a pipeline folder: which files count, and what is said when that is not clear."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.interop.diffusers.folders import component_folder
from genaffect_jax.interop.diffusers.pipeline_folder import text_parts


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
        (("model.fp16.safetensors",), "no such file .* model.fp16.safetensors is a variant"),
        ((), "model.safetensors: no such file"),
    ],
)
def test_weights_that_are_not_clear_are_refused(weights, said, tmp_path):
    with pytest.raises(WeightsError, match=said):
        text_parts(pipeline(tmp_path / "pipe", *weights))


def test_a_download_of_single_components_needs_no_model_index(tmp_path):
    (tmp_path / "transformer").mkdir()
    assert component_folder(tmp_path, "transformer") == tmp_path / "transformer"
    assert component_folder(tmp_path / "transformer", "transformer") == tmp_path / "transformer"
    (tmp_path / "config.json").write_text("{}")  # the folder is a component itself
    assert component_folder(tmp_path, "transformer") == tmp_path


def test_thousands_of_problems_are_one_short_line():
    assert listed(["a", "b"]) == "a; b"
    assert listed([f"key {i}" for i in range(1000)]).endswith("key 39; and 960 more")
