"""`check.py` of an exported folder passes without JAX, finds planted faults, and the documents' examples run there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.exported import KINDS, load, run_alone, to_pil

from genaffect_jax.export.diffusers import export_diffusers
from genaffect_jax.export.evidence import CASES

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.torch


def damaged(folder: Path, target: Path, file: str, change) -> Path:
    """A copy of an exported folder with other tensors in one file."""
    shutil.copytree(folder, target)
    state = safetensors_torch.load_file(target / file)
    change(state)
    safetensors_torch.save_file(state, target / file, metadata={"format": "pt"})
    return target


def swap_branches(state) -> None:
    for part in ("to_k.weight", "to_v.weight"):
        a, b = (f"blocks.1.{branch}.{part}" for branch in ("identity", "expression"))
        state[a], state[b] = state[b].clone(), state[a].clone()


def drop_bias(state) -> None:
    state["transformer_blocks.1.ff.net.2.bias"].zero_()


def scale_decoder(state) -> None:
    state["decoder.conv_in.weight"].mul_(1.05)


@pytest.mark.parametrize("kind", KINDS)
def test_check_passes_without_jax_and_without_this_package(folders, kind, tmp_path) -> None:
    done = run_alone(folders[kind] / "check.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "passed"
    results = {line.split()[1] for line in done.stdout.splitlines()[:-1]}
    expected = {"vectors", "reference_latents", "keys_and_values", "blocks", "latents", "images"}
    assert results == expected | ({"face"} if kind == "faces" else set())


def test_half_precision_folders_pass_their_check(runs, tmp_path) -> None:
    export_diffusers(runs["faces"], tmp_path / "half", "bfloat16", cases=CASES[:1])
    done = run_alone(tmp_path / "half" / "check.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    state = safetensors_torch.load_file(tmp_path / "half/transformer/diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in state.values()} == {torch.bfloat16}
    pipe = load(tmp_path / "half", dtype=torch.bfloat16)
    images = pipe(to_pil(np.full((16, 16, 3), 120, np.uint8)), "joy", num_inference_steps=2).images
    assert images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        ("adapter/diffusion_pytorch_model.safetensors", swap_branches, "keys_and_values at 1"),
        ("transformer/diffusion_pytorch_model.safetensors", drop_bias, "blocks at 1"),
        ("vae/diffusion_pytorch_model.safetensors", scale_decoder, "images at 0"),
    ],
)
def test_check_finds_planted_faults_and_says_where(folders, tmp_path, file, change, where) -> None:
    folder = damaged(folders["text"], tmp_path / "damaged", file, change)
    done = run_alone(folder / "check.py", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    first = next(line for line in done.stdout.splitlines() if "DIFFERS" in line).split()
    assert f"{first[1]} at {first[-1]}" == where, done.stdout
    assert done.stdout.splitlines()[-1].startswith("FAILED: ")


def test_check_finds_a_wrong_scale(folders, tmp_path) -> None:
    shutil.copytree(folders["text"], tmp_path / "damaged")
    config = tmp_path / "damaged/vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 1.4}))
    done = run_alone(tmp_path / "damaged/check.py", cwd=tmp_path)
    assert done.returncode == 1
    first = next(line for line in done.stdout.splitlines() if "DIFFERS" in line).split()
    assert first[1] == "reference_latents"


@pytest.mark.parametrize("document", ["README.md", "docs/guide/export.md"])
def test_the_documents_example_runs_as_written_without_jax(folders, document, tmp_path) -> None:
    text = (Path(__file__).parents[2] / document).read_text()
    # Those of folders in half precision run in test_documented_loading.py.
    written = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "dtype=torch" not in block]
    blocks = [block for block in written if "custom_pipeline=folder" in block]
    assert len(blocks) == 1
    (tmp_path / "out").mkdir()
    shutil.copytree(folders["avatar"], tmp_path / "out/exported")
    to_pil(np.full((70, 90, 3), 140, np.uint8)).save(tmp_path / "face.png")
    if document != "README.md":  # everything here is PyTorch: the example, then a training step
        blocks = written
        assert "optimizer.step()" in blocks[-1]
    (tmp_path / "example.py").write_text("\n".join(blocks))
    done = run_alone(tmp_path / "example.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"joy.png", "0.png"} & {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "out/trained/model_index.json").is_file() == (document != "README.md")
