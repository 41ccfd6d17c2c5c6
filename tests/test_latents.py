"""The latent cache: what it holds, when it is used again, and that nothing stale or partial ever is."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genaffect_jax.data.folder import FolderSource, open_folder
from genaffect_jax.data.latents import LatentSource, write_latents
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.pictures import DataError


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    for i in range(3):
        (tmp_path / "r" / f"p{i}").mkdir(parents=True)
        for j, word in enumerate(("neutral", "joy", "anger")):
            Image.new("RGB", (8, 8), (50 * i, 50 * j, 100)).save(tmp_path / "r" / f"p{i}" / f"{word}.png")
    return open_folder(tmp_path / "r", 8, 0.0, tmp_path / "w")


class Encoder:
    """Means of 4 x 4 blocks, and a count of its calls."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        self.shapes.append(pictures.shape)
        return self.factor * pictures.reshape(len(pictures), 2, 4, 2, 4, 3).mean((2, 4))


def test_every_picture_has_its_own_latents_in_order(source: FolderSource, tmp_path: Path) -> None:
    encoder = Encoder()
    path = write_latents(source, tmp_path / "cache" / "latents.npy", encoder, 4, "encoder 1")
    assert encoder.shapes == [(4, 8, 8, 3)] * 3  # nine pictures: the last batch is filled up
    latents = LatentSource(source, path)
    for index, picture in enumerate(latents.pictures):
        assert picture is source.pictures[index]
        loaded = latents.load(index)
        assert loaded.dtype == np.float16
        np.testing.assert_array_equal(loaded, np.tile(source.load(index)[0, 0], (2, 2, 1)))


def test_an_existing_file_is_reused_and_a_stale_one_never(source: FolderSource, tmp_path: Path) -> None:
    target = tmp_path / "latents.npy"
    first = write_latents(source, target, Encoder(), 4, "encoder 1")
    again = Encoder()
    assert write_latents(source, target, again, 4, "encoder 1") == first
    assert again.shapes == []
    other = Encoder(2.0)
    second = write_latents(source, target, other, 4, "encoder 2")
    assert second != first
    assert LatentSource(source, second).load(0)[0, 0, 2] == 200
    assert LatentSource(source, first).load(0)[0, 0, 2] == 100
    # A changed picture of the same name is another source.
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source.root / source.files[0])
    changed = open_folder(source.root, 8, 0.0, tmp_path / "w")
    third = write_latents(changed, target, Encoder(), 4, "encoder 1")
    assert third not in (first, second)
    assert LatentSource(changed, third).load(0)[0, 0].tolist() == [1, 2, 3]


def test_an_interrupted_run_leaves_no_file_behind(source: FolderSource, tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupted(pictures: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Encoder()(pictures)

    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        write_latents(source, folder / "latents.npy", interrupted, 4, "e")
    assert list(folder.iterdir()) == []


def test_an_encoder_that_misbehaves_is_refused(source: FolderSource, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(4, 12\)"):
        write_latents(source, tmp_path / "a.npy", lambda p: np.zeros((4, 12)), 4, "e")
    with pytest.raises(DataError, match=r"shape \(2, 1, 1, 1\)"):
        write_latents(source, tmp_path / "a.npy", lambda p: np.zeros((2, 1, 1, 1)), 4, "e")
    with pytest.raises(DataError, match="not finite in float16"):
        write_latents(source, tmp_path / "a.npy", lambda p: np.full((4, 1, 1, 1), 1e6), 4, "e")
    assert not list(tmp_path.glob("*.npy"))


def test_a_damaged_or_foreign_file_is_refused(source: FolderSource, tmp_path: Path) -> None:
    path = write_latents(source, tmp_path / "latents.npy", Encoder(), 4, "e")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not readable as latents"):
        write_latents(source, tmp_path / "latents.npy", Encoder(), 4, "e")
    for name, array in (("few.npy", np.zeros((3, 2, 2, 3), np.float16)), ("type.npy", np.zeros((9, 2, 2, 3)))):
        np.save(tmp_path / name, array)
        with pytest.raises(DataError, match=r"expected float16 \[9, h, w, c\]"):
            LatentSource(source, tmp_path / name)


def test_the_loader_serves_latents_and_workers_map_the_file_themselves(source: FolderSource, tmp_path: Path) -> None:
    latents = LatentSource(source, write_latents(source, tmp_path / "latents.npy", Encoder(), 9, "e"))
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
