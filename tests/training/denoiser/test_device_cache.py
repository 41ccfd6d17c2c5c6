"""The data set on the devices: which one is kept there, and that training learns the same as from streamed batches."""

import dataclasses
import io
import shutil
from contextlib import nullcontext
from itertools import islice

import jax
import numpy as np
import pytest
from rich.console import Console
from support.devices import first_device
from support.training_runs import QUIET, rows, with_train

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.compile_check.collectives import KINDS
from genaffect_jax.config import DataConfig, MeshConfig
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.feature_writer import write_features
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.base import Example
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import batch_sharding, replicated
from genaffect_jax.training.denoiser import device_cache
from genaffect_jax.training.denoiser import task as denoiser_task
from genaffect_jax.training.denoiser.device_cache import TABLE, cache_on_devices, gathering
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.step import device_batch

PEOPLE, EXPRESSIONS = 6, 5
CACHED = DataConfig(cache_latents=True)


class Faces:
    """Images that differ in every pixel."""

    width = 40
    examples = tuple(
        Example(f"p{person}", str(number), np.full(40, person + number / 8, np.float32))
        for person in range(PEOPLE)
        for number in range(EXPRESSIONS)
    )

    def load(self, index):
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)

    def describe(self):
        return "faces"

    def fingerprint(self):
        return "0"


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Latents and face embeddings of `Faces`."""

    def encode(images):
        return {"latents": images[:, ::2, ::2] / 16, "embedding": images[:, 0, :4, 0] / 256}

    return CachedFeatures(Faces(), write_features(Faces(), tmp_path_factory.mktemp("f") / "f.npy", encode, 16, "e"))


@pytest.fixture(scope="module")
def prompts():
    return np.arange(PEOPLE * EXPRESSIONS)[::-1]


def batches(features, prompts, **changes):
    people = [f"p{person}" for person in range(PEOPLE)]
    settings = {"batch_size": 8, "expressions_per_set": 3, "seed": 0, "workers": None, "prompts": prompts}
    return make_loader(features, people, **settings | changes)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_loss_reads_from_the_devices_the_batch_that_streaming_gives(features, prompts, devices):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    table = cache_on_devices(CACHED, features, prompts, mesh, QUIET)
    read = gathering(lambda module, frozen_components, batch, keys: batch)
    cut = batch_sharding(mesh)
    program = jax.jit(lambda table, batch: read(None, {TABLE: table}, batch, None), out_shardings=cut)
    streams = batches(features, prompts, by_index=True), batches(features, prompts)
    for indices, expected in islice(zip(*streams, strict=True), 5):
        assert {name: (array.dtype, array.shape) for name, array in indices.items()} == {
            "reference": (np.int32, (8, 1)),
            "target": (np.int32, (8, 3)),
            "identity": (np.int32, (8,)),
        }
        found = program(table, device_batch(indices, mesh))
        assert found.keys() == expected.keys() == {*indices, "expression", "prompt", "embedding"}
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert streams[0].get_state() == streams[1].get_state()
    text = program.lower(table, device_batch(indices, mesh)).compile().as_text()
    assert not any(kind in text for kind in KINDS)  # every device reads its own copy


def test_every_device_holds_the_whole_table(features, prompts):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    table = cache_on_devices(CACHED, features, prompts, mesh, QUIET)
    assert {name: (array.dtype, array.shape) for name, array in table.items()} == {
        "image": (np.float16, (30, 4, 4, 3)),
        "expression": (np.float32, (30, 40)),
        "embedding": (np.float16, (30, 4)),
        "prompt": (np.int32, (30,)),
    }
    assert all(array.sharding == replicated(mesh) for array in table.values())


# 30 rows of 48 latents and 4 numbers of an embedding in float16, 40 of an expression in float32.
SIZE = 30 * (52 * 2 + 40 * 4)


@pytest.mark.parametrize(
    ("changes", "memory", "kept", "said"),
    [
        ({}, 2**40, True, "kept on every device, 7.38e-06 GiB"),
        ({"device_cache_gib": SIZE / 2**30}, 4 * SIZE, True, "kept on every device"),
        ({"device_cache_gib": SIZE / 2**30}, 4 * SIZE - 1, False, "exceed a quarter of a device's memory"),
        (
            {"device_cache_gib": (SIZE - 1) / 2**30},
            4 * SIZE,
            False,
            "streamed, its 7.38e-06 GiB exceed data.device_cache_gib",
        ),
        ({"device_cache_gib": 0.0}, 2**40, False, "exceed data.device_cache_gib=0.0"),
        ({"cache_latents": False}, 2**40, False, "streamed, its images are not cached (data.cache_latents)"),
    ],
)
def test_a_data_set_within_both_limits_is_kept_and_the_choice_is_said(
    features, monkeypatch, changes, memory, kept, said
):
    monkeypatch.setattr(device_cache, "device_memory", lambda: memory)
    console = Console(file=io.StringIO(), width=200)
    config = dataclasses.replace(CACHED, **changes)
    table = cache_on_devices(config, features, None, make_mesh(MeshConfig()), console)
    assert (table is not None) == kept
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.fixture(scope="module")
def runs(tiny_config):
    """The same run with the data set on the devices, and streamed."""
    config = with_train(tiny_config, schedule="constant", checkpoint_every=2, probe_every=0)
    data = dataclasses.replace(config.data, cache_latents=True)
    return [dataclasses.replace(config, data=dataclasses.replace(data, device_cache_gib=gib)) for gib in (8.0, 0.0)]


@pytest.fixture(scope="module", params=[1, 8])
def kept(request, runs, tmp_path_factory):
    """The folder of a run that reads from the devices, and its end, with one device or all in use."""
    with pytest.MonkeyPatch.context() as patch, first_device() if request.param == 1 else nullcontext():
        # Compiling a sampler would take most of the time.
        patch.setattr(denoiser_task, "_preview", lambda *_: lambda _: np.zeros((8, 8, 3), np.uint8))
        folder = tmp_path_factory.mktemp("kept")
        assert train_denoiser(runs[0], folder, QUIET)
        yield folder


def assert_equal_ends(config, folder, expected):
    """Same states to the bit, same input positions."""
    abstract = abstract_state(build_networks(config.model)[0], make_optimizer(config.train), make_mesh(MeshConfig()))
    (found, position), (whole, whole_position) = (Checkpoints(path).restore(abstract) for path in (folder, expected))
    assert int(found.step) == 4
    assert position == whole_position
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_streamed_run_equals_to_the_bit_one_that_reads_from_the_devices(runs, kept, tmp_path):
    assert train_denoiser(runs[1], tmp_path, QUIET)
    assert_equal_ends(runs[1], tmp_path, kept)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert len(losses) == 3  # the first step, a compilation, has no row
    assert losses == [row["loss"] for row in rows(kept)]


def test_a_run_that_streams_one_step_in_the_middle_equals_to_the_bit_one_that_does_not(runs, kept, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    assert train_denoiser(with_train(runs[1], steps=3), folder, QUIET)
    assert train_denoiser(runs[0], folder, QUIET)
    assert_equal_ends(runs[0], folder, kept)
