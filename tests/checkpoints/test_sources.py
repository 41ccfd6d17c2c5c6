"""A run is continued with the same images and weights under another path, and refused with others."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.checkpoints.sources import settle_sources
from genaffect_jax.config import AuxiliaryConfig, DenoiserRun, from_json
from genaffect_jax.errors import CheckpointError, ConfigError, WeightsError


class Images:
    """A source, as far as its fingerprint goes."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def fingerprint(self) -> str:
        return self._fingerprint


IMAGES = Images("a")


def with_paths(config: DenoiserRun, root: Path, weights: Path) -> DenoiserRun:
    data = dataclasses.replace(config.data, source="folder", root=root)
    return dataclasses.replace(
        config, data=data, model=dataclasses.replace(config.model, autoencoder_weights=str(weights))
    )


def start(path: Path, config: DenoiserRun, images: Images = IMAGES) -> RunDir:
    run_dir = RunDir.create(path, config)
    settle_sources(run_dir, config, images)
    return run_dir


@pytest.fixture
def begun(tiny_config, tmp_path):
    """A run with a checkpoint, its configuration, and its weights."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    config = with_paths(tiny_config, tmp_path / "images", weights)
    run_dir = start(tmp_path / "run", config)
    (run_dir.checkpoints / "3").mkdir(parents=True)
    return run_dir, config, weights


def test_the_same_content_under_another_path_continues_the_run(begun, tiny_config, tmp_path, monkeypatch):
    run_dir, _, weights = begun
    moved = tmp_path / "there" / "w.safetensors"
    moved.parent.mkdir()
    shutil.copyfile(weights, moved)
    os.utime(moved, (1, 1))
    monkeypatch.chdir(tmp_path)
    for root, place in (
        (tmp_path / "images", moved),
        (Path("images"), moved),
        (Path("gone"), Path("there", moved.name)),
    ):
        config = with_paths(tiny_config, root, place)
        start(run_dir.path, config)
        assert from_json(DenoiserRun, run_dir.config.read_text()) == config


def test_another_content_under_another_path_is_refused_and_nothing_changes(begun, tiny_config, tmp_path):
    run_dir, config, weights = begun
    before = run_dir.config.read_text()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"model\.autoencoder_weights=.*, now .*other\.safetensors: another content"):
        start(run_dir.path, with_paths(tiny_config, tmp_path / "images", other))
    with pytest.raises(ConfigError, match=r"data\.root=.*images, now .*elsewhere: another content"):
        start(run_dir.path, with_paths(tiny_config, tmp_path / "elsewhere", weights), Images("b"))
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors: No such file"):
        start(run_dir.path, with_paths(tiny_config, tmp_path / "images", tmp_path / "nowhere.safetensors"))
    encoder = dataclasses.replace(config.model, expression_encoder="package:expression_avatar")
    with pytest.raises(ConfigError, match=r"model\.expression_encoder=, now package:expression_avatar"):
        start(run_dir.path, dataclasses.replace(config, model=encoder))  # none before: no other path, another model
    assert run_dir.config.read_text() == before


def test_a_path_that_the_run_does_not_use_may_change(begun):
    run_dir, config, _ = begun
    unused = dataclasses.replace(config, auxiliary=AuxiliaryConfig(identity_encoder="nowhere"))
    start(run_dir.path, unused)
    assert from_json(DenoiserRun, run_dir.config.read_text()) == unused


def test_a_run_without_record_continues_where_the_path_leads_to_the_same_place(
    begun, tiny_config, tmp_path, monkeypatch
):
    run_dir, config, weights = begun
    run_dir.digests.unlink()  # a folder of an earlier version
    start(run_dir.path, config)
    monkeypatch.chdir(tmp_path)
    start(run_dir.path, with_paths(tiny_config, Path("images"), Path(weights.name)))
    copy = shutil.copyfile(weights, tmp_path / "copy.safetensors")
    with pytest.raises(ConfigError, match="the content was not recorded when the run began"):
        start(run_dir.path, with_paths(tiny_config, tmp_path / "images", copy))


def test_a_damaged_record_is_one_error_that_names_it(begun, tiny_config, tmp_path):
    run_dir, _, weights = begun
    moved = weights.rename(tmp_path / "moved.safetensors")
    for content in ("{ torn", "[]", "null", '{"files": 1, "sources": {}}', "[" * 100_000):
        run_dir.digests.write_text(content)
        with pytest.raises(CheckpointError, match=r"digests\.json: damaged"):
            start(run_dir.path, with_paths(tiny_config, tmp_path / "images", moved))
