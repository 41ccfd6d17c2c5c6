"""Cached features as training reads them: damaged files, the loader's batches, embeddings, measured expressions."""

from __future__ import annotations

import pickle
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.feature_writer import write_features
from genaffect_jax.data.loader import automatic_workers, make_loader
from genaffect_jax.data.sources.folder import FolderSource, open_folder
from genaffect_jax.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    for i in range(3):
        (tmp_path / "r" / f"p{i}").mkdir(parents=True)
        for j, word in enumerate(("neutral", "joy", "anger")):
            Image.new("RGB", (8, 8), (50 * i, 50 * j, 100)).save(tmp_path / "r" / f"p{i}" / f"{word}.png")
    return open_folder(tmp_path / "r", 8, 0.0, RunDir(tmp_path / "w"))


def encode_blocks(images: np.ndarray) -> dict[str, np.ndarray]:
    """Means of 4 x 4 blocks."""
    return {"latents": images.reshape(len(images), 2, 4, 2, 4, 3).mean((2, 4))}


def test_a_damaged_or_foreign_file_is_refused(source: FolderSource, tmp_path: Path) -> None:
    path = write_features(source, tmp_path / "latents.npy", encode_blocks, 4, "e")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not readable as encoded images"):
        write_features(source, tmp_path / "latents.npy", encode_blocks, 4, "e")
    rows = [("latents", np.float16, (2, 2, 3))]
    for name, array in (
        ("few.npy", np.zeros(3, rows)),
        ("bare.npy", np.zeros((9, 2, 2, 3), np.float16)),
        ("other.npy", np.zeros(9, [("pose", np.float16, (3,))])),
    ):
        np.save(tmp_path / name, array)
        with pytest.raises(DataError, match="expected 9 rows of latents, embedding, expression"):
            CachedFeatures(source, tmp_path / name)


def test_the_loader_serves_latents_and_workers_map_the_file_themselves(source: FolderSource, tmp_path: Path) -> None:
    latents = CachedFeatures(source, write_features(source, tmp_path / "latents.npy", encode_blocks, 9, "e"))
    assert len(pickle.dumps(latents)) < len(pickle.dumps(source)) + 1000  # the path travels, not the array
    settings = {"batch_size": 2, "expressions_per_set": 2, "seed": 0}
    pixels = make_loader(source, ("p0", "p1", "p2"), workers=0, **settings)
    stream = make_loader(latents, ("p0", "p1", "p2"), workers=1, **settings)
    for expected, batch in zip(islice(pixels, 3), islice(stream, 3), strict=True):
        assert batch["target"].shape == (2, 2, 2, 2, 3)
        assert batch["target"].dtype == np.float16
        np.testing.assert_array_equal(batch["target"][:, :, 0, 0], expected["target"][:, :, 0, 0])
        np.testing.assert_array_equal(batch["expression"], expression := expected["expression"])
        assert expression.shape == (2, 2, 40)
    stream.close()


def test_cached_latents_are_served_without_worker_processes_by_default(source: FolderSource, tmp_path: Path) -> None:
    latents = CachedFeatures(source, write_features(source, tmp_path / "latents.npy", encode_blocks, 9, "e"))
    stream = make_loader(latents, ("p0", "p1", "p2"), batch_size=2, expressions_per_set=2, seed=0, workers=None)
    batch = next(stream)
    assert not active_children()
    # What was read is a copy: the mapped file may go, and a batch may be written to.
    assert all(type(array) is np.ndarray and array.base is None for array in batch.values())

    def encode(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"embedding": images[:, 0, 0]}

    pixels = CachedFeatures(source, write_features(source, tmp_path / "faces.npy", encode, 9, "e"))
    assert (automatic_workers(latents), automatic_workers(pixels) >= 1) == (0, True)


def test_embeddings_reach_the_batch_and_measured_expressions_take_the_place_of_the_labels(
    source: FolderSource, tmp_path: Path
) -> None:
    def encode(images: np.ndarray) -> dict[str, np.ndarray]:
        person, word = images[:, 0, 0, 0] / 50, images[:, 0, 0, 1] / 50
        return {"embedding": np.stack([person, word], 1), "expression": np.stack([word, person, 0 * word], 1) / 4}

    encoded = CachedFeatures(source, write_features(source, tmp_path / "faces.npy", encode, 4, "e"))
    assert (encoded.width, encoded.load(0).shape) == (3, (8, 8, 3))  # no latents: the pixels
    loader = make_loader(encoded, ("p0", "p1", "p2"), batch_size=3, expressions_per_set=2, seed=0, workers=0)
    for batch in islice(loader, 3):
        shown = batch["reference"][:, 0, 0, 0, :2] / 50
        np.testing.assert_array_equal(batch["embedding"][:, 0], shown)
        expected = batch["target"][:, :, 0, 0, 1] / 50 / 4
        np.testing.assert_array_equal(batch["expression"][..., 0], expected)
        # Reference and targets show different labels, though all measured vectors differ.
        for reference, targets in zip(shown[:, 1], expected * 4, strict=True):
            assert len({reference, *targets}) == 3
    assert {p.expression_key for p in encoded.examples} == {b"neutral", b"joy", b"anger"}
