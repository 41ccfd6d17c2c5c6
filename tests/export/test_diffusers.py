"""`export diffusers` and `from-torch` write whole folders, and refuse what they cannot use without leaving anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.exported import save_faces_run, save_text_run
from support.sd3_runs import random_parameters, run_config, save_run, set_sampling
from support.shared import made_once

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import AutoencoderRun, SamplingDefaults, to_json
from genaffect_jax.errors import FAILED, WRONG_ARGUMENT, WeightsError
from genaffect_jax.export import __main__ as export
from genaffect_jax.export.diffusers import CODE, export_diffusers
from genaffect_jax.export.from_torch import from_torch
from genaffect_jax.export.trained import TrainedDenoiser
from genaffect_jax.models.build import build_networks

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "text_run", save_text_run)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        export_diffusers(run, folder / "exported", cases=())

    return made_once(tmp_path_factory, "text_export_without_evidence", make) / "exported"


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def command(*arguments: object) -> int:
    return export.main([str(a) for a in arguments])


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_folder_holds_every_part_and_the_checksums_are_theirs(exported) -> None:
    names = {file.relative_to(exported).as_posix() for file in exported.rglob("*") if file.is_file()}
    assert {"model_index.json", "modular_model_index.json", "modular_config.json", "README.md", "LICENSE"} <= names
    assert {*CODE, "check.py", "parity.json", "parity.safetensors", TRANSFORMER} <= names
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    assert sums.keys() == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest, name


def test_the_headers_say_what_the_weights_are(exported) -> None:
    family = "stable-diffusion-v3"
    for part, architecture in (("transformer", family), ("adapter", f"{family}/gen-affect-adapter")):
        with safe_open(exported / part / "diffusion_pytorch_model.safetensors", framework="numpy") as file:
            header = file.metadata()
        assert header["format"] == "pt"
        assert header["modelspec.sai_model_spec"] == "1.0.1"
        assert header["modelspec.architecture"] == architecture
        assert header["modelspec.resolution"] == "16x16"
        assert header["modelspec.prediction_type"] == "velocity"


def test_the_model_card_names_encoders_and_licences(tmp_path_factory, tmp_path) -> None:
    faces = made_once(tmp_path_factory, "faces_run", save_faces_run)
    export_diffusers(faces, tmp_path / "out", cases=())
    card = (tmp_path / "out/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "identity_avatar" in card
    assert "expression_avatar" in card
    assert (tmp_path / "out/identity_encoder/config.json").is_file()
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["identity_encoder"] == ["genaffect", "GenAffectFaceEncoder"]


def test_the_models_own_settings_are_exported_as_the_run_folder_has_them_and_come_home(tmp_path) -> None:
    own = SamplingDefaults(steps=7, solver="heun", guidance_identity=1.25, guidance_expression=1.0, consistency=0.25)
    save_text_run(tmp_path / "run")
    set_sampling(tmp_path / "run", own)
    (remark,) = export_diffusers(tmp_path / "run", tmp_path / "out", cases=())
    assert "solver 'heun'" in remark
    run = json.loads((tmp_path / "out/adapter/config.json").read_text())["run"]
    assert run["config"]["sampling"] == dataclasses.asdict(own)
    card = (tmp_path / "out/README.md").read_text()
    for setting in ("num_inference_steps=7", "guidance_identity=1.25", "guidance_expression=1.0", "consistency=0.25"):
        assert f"    {setting},\n" in card
    assert remark[1:] in card
    assert command("from-torch", tmp_path / "out", "--out", tmp_path / "home") == 0
    assert RunDir(tmp_path / "home").sampling_defaults() == own
    assert TrainedDenoiser(tmp_path / "home").config.sampling == own


def test_a_model_whose_solver_is_there_has_no_remarks(run, exported, tmp_path) -> None:
    assert export_diffusers(run, tmp_path / "out", cases=()) == []
    assert "Not exported" not in (exported / "README.md").read_text()


def test_only_an_earlier_export_is_replaced_and_only_when_told(run, copy, tmp_path, capsys) -> None:
    before = content(copy)
    assert command("diffusers", "--model", run, "--out", copy) == WRONG_ARGUMENT
    assert "--out" in capsys.readouterr().err
    assert content(copy) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    assert command("diffusers", "--model", run, "--out", foreign, "--overwrite") == WRONG_ARGUMENT
    assert "holds other files" in capsys.readouterr().err
    assert content(foreign) == {"thesis.txt": b"mine"}
    (copy / "notes.txt").write_text("mine too")
    assert command("diffusers", "--model", run, "--out", copy, "--overwrite") == WRONG_ARGUMENT
    assert (copy / "notes.txt").read_text() == "mine too"
    (copy / "notes.txt").unlink()
    trained = copy / TRANSFORMER
    kept = trained.read_bytes()
    trained.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # trained further in PyTorch
    assert command("diffusers", "--model", run, "--out", copy, "--overwrite") == WRONG_ARGUMENT
    trained.write_bytes(kept)
    export_diffusers(run, copy, "float16", cases=(), overwrite=True)
    with safe_open(copy / TRANSFORMER, framework="numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


def test_a_run_that_cannot_be_exported_leaves_nothing(run, tmp_path, monkeypatch, capsys) -> None:
    assert command("diffusers", "--model", tmp_path / "nowhere", "--out", tmp_path / "out") == WRONG_ARGUMENT
    assert command("diffusers", "--model", run, "--checkpoint", 3, "--out", tmp_path / "out") == FAILED

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genaffect_jax.export.diffusers.write_autoencoder", full)
    with pytest.raises(OSError, match="No space left"):
        export_diffusers(run, tmp_path / "out", cases=())
    assert not list(tmp_path.iterdir())


def test_only_runs_of_denoisers_are_exported(tmp_path, capsys) -> None:
    with Checkpoints(tmp_path / "autoencoder") as checkpoints:
        checkpoints.save_for_sampling(3, {"a": jnp.ones(3)}, {}, to_json(AutoencoderRun()))
    for name in ("diffusers", "single-file", "merge"):
        out = tmp_path / "out.safetensors"
        assert command(name, "--model", tmp_path / "autoencoder", "--out", out) == WRONG_ARGUMENT
        assert "no run of a denoiser" in capsys.readouterr().err
        assert not out.exists()


def test_a_model_whose_conditions_enter_in_another_way_is_not_exported(tmp_path, capsys) -> None:
    config = run_config(register_tokens=2, pooled_projection_dim=0)
    conditioning = dataclasses.replace(config.model.conditioning, attention="concatenated")
    model = dataclasses.replace(config.model, conditioning=conditioning)
    save_run(tmp_path / "run", dataclasses.replace(config, model=model))
    for name in ("diffusers", "single-file", "merge"):
        out = tmp_path / "out.safetensors"
        assert command(name, "--model", tmp_path / "run", "--out", out) == WRONG_ARGUMENT
        assert "only models with 'decoupled' are exported" in capsys.readouterr().err
        assert not out.exists()


def test_numbers_too_large_for_half_precision_are_named(tmp_path) -> None:
    config = run_config(register_tokens=2, pooled_projection_dim=0)
    huge = {name: 1e6 * value for name, value in random_parameters(build_networks(config.model)[0]).items()}
    save_run(tmp_path / "run", config, parameters=huge)
    with pytest.raises(WeightsError, match=r"not finite as float16 in .*kernel"):
        export_diffusers(tmp_path / "run", tmp_path / "out", "float16", cases=())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / TRANSFORMER).write_bytes((f / TRANSFORMER).read_bytes()[:-1000]), "damaged"),
        (lambda f: (f / TRANSFORMER).unlink(), "has neither"),
        (lambda f: shutil.rmtree(f / "adapter"), "adapter: no such folder"),
        (lambda f: shutil.rmtree(f / "vae"), "vae: no such folder"),
        (lambda f: shutil.rmtree(f / "expressions"), "expressions: no such folder"),
        (lambda f: change(f / "adapter/config.json", width=24), "width is 24, must be 16"),
        (lambda f: change(f / "adapter/config.json", run={"name": "x"}), "describes no run"),
        (lambda f: change(f / "adapter/config.json", run=None), "has no object 'run'"),
        (lambda f: change(f / "transformer/config.json", pos_embed_max_size=8), "pos_embed_max_size is 8, must be 4"),
        (lambda f: change(f / "vae/config.json", scaling_factor=2.0), "not the autoencoder of this adapter"),
        (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: no such file"),
        (lambda f: diverge(f / TRANSFORMER), "not finite, in mmdit.out.bias"),
    ],
)
def test_a_damaged_or_foreign_part_is_named_and_nothing_is_written(copy, tmp_path, damage, said, capsys) -> None:
    damage(copy)
    assert command("from-torch", copy, "--out", tmp_path / "home") == FAILED
    assert said in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_from_torch_wants_an_export_and_a_new_folder(copy, tmp_path, capsys) -> None:
    (tmp_path / "home").mkdir()
    assert command("from-torch", copy, "--out", tmp_path / "home") == WRONG_ARGUMENT
    assert command("from-torch", tmp_path / "home", "--out", tmp_path / "new") == WRONG_ARGUMENT
    said = " ".join(capsys.readouterr().err.split())
    assert "exists; name a new folder" in said
    assert "has no model_index.json" in said


def diverge(file: Path) -> None:
    tensors = load_file(file)
    tensors["proj_out.bias"][0] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_folders_schedule_comes_home(copy, tmp_path) -> None:
    change(copy / "scheduler/scheduler_config.json", shift=1.5)
    from_torch(copy, tmp_path / "home")
    assert TrainedDenoiser(tmp_path / "home").config.flow.shift == 1.5


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
