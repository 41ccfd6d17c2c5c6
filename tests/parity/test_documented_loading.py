"""The code with which README, guides and model cards load what this package wrote runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

from support.devices import first_device  # noqa: E402
from support.exported import save_text_run  # noqa: E402
from support.tiny_sd3 import tiny_pipeline  # noqa: E402

from genaffect_jax.config import SamplingConfig  # noqa: E402
from genaffect_jax.export import diffusers as export  # noqa: E402
from genaffect_jax.export.evidence import Case  # noqa: E402

ROOT = Path(__file__).parents[2]
HALF = ("float16", "bfloat16")
OPTIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def block(document: Path, *contents: str) -> str:
    """The only Python block of a document that has all of these contents."""
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    found = [text for text in blocks if all(content in text for content in contents)]
    assert len(found) == 1, f"{document}: {len(found)} of {len(blocks)} blocks have {contents}"
    return found[0]


def run(code: str, **names: Any) -> dict[str, Any]:
    """The names that a block leaves."""
    exec(compile(code, "documentation", "exec"), names)
    return names


def dtypes(pipe: Any) -> set[str]:
    return {str(part.dtype).removeprefix("torch.") for part in pipe.components.values() if hasattr(part, "dtype")}


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    """By stored type, a place with `out/exported` and `face.png`."""
    trained, places = tmp_path_factory.mktemp("run"), {}
    save_text_run(trained)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for dtype in HALF:
        places[dtype] = tmp_path_factory.mktemp(dtype)
        with first_device():
            cases = [Case("short", 1, SamplingConfig(steps=1))]
            export.export_diffusers(trained, places[dtype] / "out" / "exported", dtype, cases=cases)
        Image.fromarray(pixels).save(places[dtype] / "face.png")
    return places


def test_the_words_of_the_readme_run_and_make_float32_of_half_precision(exports, monkeypatch):
    monkeypatch.chdir(exports["float16"])
    found = run(block(ROOT / "README.md", "from diffusers import DiffusionPipeline"))
    assert dtypes(found["pipe"]) == {"float32"}
    assert np.asarray(Image.open("joy.png")).std() > 1


@pytest.mark.parametrize("dtype", HALF)
def test_the_words_of_the_guide_and_of_the_model_card_keep_the_stored_type(dtype, exports, monkeypatch):
    monkeypatch.chdir(exports[dtype])
    guide = block(ROOT / "docs" / "guide" / "export.md", "dtype=torch.float16").replace("float16", dtype)
    card = block(Path("out/exported/README.md"), "from_pretrained")
    images = [run(guide), run(card, DIR="out/exported")]
    for found in images:
        assert dtypes(found["pipe"]) == {dtype}
        assert np.isfinite(np.asarray(found["images"][0], np.float32)).all()
    np.testing.assert_array_equal(*(np.asarray(found["images"][0]) for found in images))
    modular = re.search(
        r"`(ModularPipeline\.from_pretrained\(DIR,\s.*?\))`, then `(load_components\(.*?\))`",
        Path("out/exported/README.md").read_text(),
        re.DOTALL,
    )
    assert modular is not None
    names = run(
        f"from diffusers import ModularPipeline\nimport torch\npipe = {modular[1]}\npipe.{modular[2]}",
        DIR="out/exported",
    )
    assert dtypes(names["pipe"]) == {dtype}


@pytest.mark.parametrize("dtype", OPTIONS)
def test_the_command_says_how_a_folder_of_half_precision_is_loaded(dtype, monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setattr(export, "export_diffusers", lambda *given, **options: [])
    arguments = export.Arguments(model=tmp_path, out=tmp_path, dtype=OPTIONS[dtype])

    class Lines:
        def print(self, line: str) -> None:
            said.append(line)

    export.run(arguments, Lines())
    assert any(f"dtype=torch.{dtype}" in line for line in said) == (dtype != "float32")


@pytest.mark.parametrize("dtype", HALF)
def test_a_released_pipeline_in_half_precision_is_read_saved_and_loaded_as_the_guide_says(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    released = tiny_pipeline(tmp_path / "raw")
    released.to(getattr(torch, dtype)).save_pretrained("stable-diffusion-3.5-medium")
    guide = ROOT / "docs" / "guide" / "weights.md"
    run(block(guide, "save_transformer("))
    for part in ("transformer", "vae"):
        name = "diffusion_pytorch_model.safetensors"
        stored, saved = (
            diffusers.models.model_loading_utils.load_state_dict(f"{folder}/{part}/{name}")
            for folder in ("stable-diffusion-3.5-medium", "mine")
        )
        assert stored.keys() == saved.keys()
        assert all(torch.equal(stored[key], saved[key]) for key in stored)
    code = block(guide, "StableDiffusion3Pipeline").replace("float16", dtype)
    found = run(code)
    assert dtypes(found["pipe"]) == {dtype}
    assert np.asarray(found["image"]).shape == (16, 16, 3)
    # What the guide says of a call without `dtype`: else the advice would be needless.
    shutil.copytree("stable-diffusion-3.5-medium", "whole")
    mixed = diffusers.StableDiffusion3Pipeline.from_pretrained("whole")
    assert dtypes(mixed) == {"float32", dtype}
    with pytest.raises(RuntimeError, match="should be the same"):
        mixed("a person", num_inference_steps=1)
