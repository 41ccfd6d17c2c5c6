"""Ablations of training: each model is trained as the plain one with one thing changed, and evaluated beside it."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from rich.console import Console
from support.devices import first_device

from genaffect_jax import evaluate
from genaffect_jax.config import DenoiserRun
from genaffect_jax.errors import ConfigError
from genaffect_jax.evaluation import training_ablations as training_ablations_module
from genaffect_jax.evaluation.training_ablations import trained_variants, training_ablations
from genaffect_jax.training.denoiser.task import train_denoiser


def changed(one, other, name=""):
    """Names of the fields that differ."""
    if dataclasses.is_dataclass(one):
        fields = (f.name for f in dataclasses.fields(one))
        return {x for f in fields for x in changed(getattr(one, f), getattr(other, f), f"{name}.{f}" if name else f)}
    return set() if one == other else {name}


def test_each_training_changes_one_thing_and_sees_as_many_images():
    plain = DenoiserRun()
    expected = {
        "another-seed": {"train.seed"},
        "concatenated-attention": {"model.conditioning.attention"},
        "text-stream": {"model.conditioning.attention"},
        "self-pairs": {"data.pairs", "data.expressions_per_set", "train.batch_size"},
        "trained-with-sharing": {"flow.consistency"},
    }
    variants = trained_variants(plain)
    assert {name: changed(plain, variant) for name, variant in variants.items()} == expected
    for variant in variants.values():
        assert variant.train.steps == plain.train.steps
        images = variant.train.batch_size * variant.data.expressions_per_set
        assert images == plain.train.batch_size * plain.data.expressions_per_set


def test_one_command_trains_and_evaluates_them_and_continues(tiny_config, tmp_path, monkeypatch):
    kept = ("self-pairs", "trained-with-sharing")  # each compiles two programs; those left out differ in a word
    monkeypatch.setattr(
        training_ablations_module, "trained_variants", lambda c: {name: trained_variants(c)[name] for name in kept}
    )
    data = dataclasses.replace(tiny_config.data, cache_latents=True)
    train = dataclasses.replace(tiny_config.train, steps=2, batch_size=2, checkpoint_every=10, probe_every=0)
    config = dataclasses.replace(tiny_config, data=data, train=train)
    model, out = tmp_path / "model", tmp_path / "out"
    command = ["--model", str(model), "--out", str(out), "--ablations", "training", "--people", "2"]
    command += ["--expressions", "2", "--dial_people", "0", "--steps", "1", "--guidance", "1"]
    with first_device():
        assert train_denoiser(config, model, Console(quiet=True))
        assert evaluate.main(command) == 0
    names = ["plain", *kept, "trained-with-sharing-consistency-0.5"]
    rows = [line.split(" | ")[0][2:] for line in (out / "ablations.md").read_text().splitlines() if line[:2] == "| "]
    assert rows[1:] == names
    for name in names:
        settings = json.loads((out / name / "evaluation.json").read_text())
        assert ("0.5" in name) == (settings["sampling"]["consistency"] == 0.5)
        trained_in = name.removesuffix("-consistency-0.5") if name != "plain" else "model"
        assert settings["model"].startswith(f"{trained_in}, step 2,")
        if name != "plain":
            # Encoded once, for the plain model.
            (own,) = (out / "trainings" / trained_in).glob("features-*.npy")
            assert own.stat().st_nlink == 3
    # A second start trains and samples nothing.
    before = (out / "ablations.md").read_text()
    stamps = {file: file.stat().st_mtime_ns for file in out.glob("*/people/*")}
    with first_device():
        assert evaluate.main(command) == 0
    assert (out / "ablations.md").read_text() == before
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/people/*")} == stamps


def test_a_model_whose_training_goes_on_is_refused(tmp_path):
    pipeline = SimpleNamespace(name="model, step 3, autoencoder 0", config=DenoiserRun())
    run = SimpleNamespace(pipeline=pipeline)
    with pytest.raises(ConfigError, match="goes on to step 1000"):
        training_ablations(run, tmp_path, tmp_path / "out", None, Console(quiet=True))
