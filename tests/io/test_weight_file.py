"""Weight files keep what was saved, and refuse what does not fit."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.tensor_files import open_file
from genaffect_jax.io import atomic, package_files
from genaffect_jax.io.weight_file import (
    checksum,
    load_weights,
    read_config,
    read_metadata,
    resolve_weights,
    save_weights,
)
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional, Parameters

CONFIG = AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2, latent_channels=2, shift_factor=0.125)


@pytest.fixture(scope="module")
def network() -> Functional[AutoencoderKL]:
    return Functional(lambda rngs: AutoencoderKL(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def parameters(network: Functional[AutoencoderKL]) -> Parameters:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.standard_normal(s.shape), s.dtype) for name, s in network.shapes.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_loaded_is_what_was_saved_rounded_to_the_stored_type(network, parameters, dtype, tmp_path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    save_weights(parameters, path, dtype, CONFIG)
    loaded = load_weights(network, path, CONFIG)
    assert loaded.keys() == parameters.keys()
    for name, value in loaded.items():
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, parameters[name].astype(dtype).astype(jnp.float32), err_msg=name)


def test_equal_weights_make_equal_files(network, parameters, tmp_path) -> None:
    texts = {f"entry {i}": f"é {i}" for i in range(6)}  # in as many orders as there are, if nobody sorts them
    for name in ("a", "b", "c"):
        save_weights(parameters, tmp_path / name, "float16", CONFIG, texts)
    assert len({checksum(tmp_path / name) for name in ("a", "b", "c")}) == 1
    assert read_metadata(tmp_path / "a").items() >= texts.items()
    load_weights(network, tmp_path / "a", CONFIG)


def test_eight_bits_keep_every_weight_within_half_a_scale_and_vectors_exactly(network, parameters, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(parameters, path, "int8", CONFIG)
    loaded = load_weights(network, path, CONFIG)
    for name, value in parameters.items():
        if value.ndim < 2:
            np.testing.assert_array_equal(loaded[name], value, err_msg=name)
            continue
        largest = np.abs(value).max(axis=tuple(range(value.ndim - 1)))
        assert np.abs(loaded[name] - value).max() > 0  # something was rounded
        assert (np.abs(loaded[name] - value) <= largest / 254 * 1.0001).all(), name
    save_weights(loaded, tmp_path / "again.safetensors", "int8", CONFIG)
    assert checksum(tmp_path / "again.safetensors") == checksum(path)  # a second rounding changes nothing
    stored = load_file(path)
    kernels = {name for name, p in parameters.items() if p.ndim >= 2}
    assert kernels == {name for name, value in stored.items() if value.dtype == np.int8}


def test_eight_bit_weights_without_their_scales_are_refused(network, parameters, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(parameters, path, "int8", CONFIG)
    stored = load_file(path)
    name = next(name for name, value in stored.items() if value.dtype == np.int8)
    scale = stored.pop(f"{name}:scale")
    save_file(stored, path, read_metadata(path))
    with pytest.raises(WeightsError, match=f"missing {name}:scale"):
        load_weights(network, path, CONFIG)
    save_file({**stored, f"{name}:scale": np.concatenate([scale, scale])}, path, read_metadata(path))
    with pytest.raises(WeightsError, match=f"{name}:scale has shape"):
        load_weights(network, path, CONFIG)
    stored[name] = stored[name].astype(np.float32)
    save_file({**stored, f"{name}:scale": scale}, path, read_metadata(path))
    with pytest.raises(WeightsError, match=f"unknown {name}:scale"):
        load_weights(network, path, CONFIG)


def test_eight_bits_have_no_place_for_numbers_that_are_not_finite(parameters, tmp_path) -> None:
    name = next(name for name, value in parameters.items() if value.ndim >= 2)
    with pytest.raises(WeightsError, match=f"not finite as int8 in {name}"):
        save_weights({**parameters, name: parameters[name] * np.inf}, tmp_path / "a.safetensors", "int8", CONFIG)
    assert not (tmp_path / "a.safetensors").exists()


def test_bfloat16_files_are_half_as_large(parameters, tmp_path) -> None:
    for dtype in ("float32", "bfloat16"):
        save_weights(parameters, tmp_path / dtype, dtype, CONFIG)
    saved = (tmp_path / "float32").stat().st_size - (tmp_path / "bfloat16").stat().st_size
    numbers = sum(p.size for p in parameters.values())
    assert saved == pytest.approx(2 * numbers, rel=0.05)


def test_equal_parameters_give_equal_files(parameters, tmp_path) -> None:
    save_weights(parameters, tmp_path / "a", "bfloat16", CONFIG)
    save_weights(dict(reversed(parameters.items())), tmp_path / "b", "bfloat16", CONFIG)
    assert checksum(tmp_path / "a") == checksum(tmp_path / "b")
    save_weights({**parameters, "decoder.conv_out.bias": jnp.ones(3)}, tmp_path / "b", "bfloat16", CONFIG)
    assert checksum(tmp_path / "a") != checksum(tmp_path / "b")


def test_all_misfits_are_named_in_one_error(network, parameters, tmp_path) -> None:
    changed = {**parameters, "decoder.extra": jnp.ones(2), "encoder.conv_out.bias": jnp.ones(7)}
    del changed["decoder.conv_in.kernel"], changed["decoder.conv_in.bias"]
    save_weights(changed, tmp_path / "a", "float32", CONFIG)
    with pytest.raises(WeightsError) as error:
        load_weights(network, tmp_path / "a")
    for part in (
        "missing decoder.conv_in.kernel (3, 3, 2, 4)",
        "missing decoder.conv_in.bias (4,)",
        "unknown decoder.extra (2,)",
        "encoder.conv_out.bias has shape (7,), must be (4,)",
    ):
        assert part in str(error.value)


def test_the_configuration_travels_with_the_weights(network, parameters, tmp_path) -> None:
    path = tmp_path / "a"
    save_weights(parameters, path, "float32", CONFIG, {"made by": "test"})
    assert read_config(path, AutoencoderConfig) == CONFIG
    assert read_metadata(path)["made by"] == "test"
    with pytest.raises(WeightsError, match=r"scaling_factor=2\.0"):
        load_weights(network, path, dataclasses.replace(CONFIG, scaling_factor=2.0))
    with pytest.raises(WeightsError, match="MMDiTConfig"):
        read_config(path, MMDiTConfig)


def test_truncated_foreign_and_missing_files_are_named(network, parameters, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(parameters, path, "float32", CONFIG)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"a\.safetensors: damaged"):
        load_weights(network, path)
    path.write_bytes(b"\x80\x04 a pickle, say")
    with pytest.raises(WeightsError, match=r"a\.safetensors: damaged"):
        load_weights(network, path)
    for read in (lambda p: load_weights(network, p), checksum, read_metadata):
        with pytest.raises(WeightsError, match=r"none\.safetensors: no such file"):
            read(tmp_path / "none.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(parameters, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(parameters, path, "float32", CONFIG)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights({"x": jnp.ones(3)}, path, "float32", CONFIG)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_numbers_that_do_not_fit_the_stored_type_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"finite as float16 in bad"):
        save_weights({"good": jnp.ones(2), "bad": jax.numpy.array([1.0, value])}, tmp_path / "a", "float16", CONFIG)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.astype(np.int32), r"\(I32\): must be one of F64, F32, F16, BF16"),
        (lambda value: value.astype(np.uint8), r"\(U8\): must be"),
        (lambda value: value > 0, r"\(BOOL\): must be"),
        (lambda value: np.full_like(value, np.nan), "numbers that are not finite in"),
        (lambda value: np.full_like(value, -np.inf), "numbers that are not finite in"),
    ],
)
def test_stored_numbers_that_are_whole_or_not_finite_are_refused_by_name(
    network, parameters, tmp_path, change, message
) -> None:
    arrays = {name: np.asarray(value) for name, value in parameters.items()}
    name = sorted(arrays)[0]
    path = tmp_path / "a.safetensors"
    save_file({**arrays, name: change(arrays[name])}, path)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(network, path)
    assert name in str(error.value)


def test_package_names_resolve_inside_the_package_only(tmp_path, monkeypatch) -> None:
    (tmp_path / "assets").mkdir()
    for name in ("assets/small.safetensors", "outside.safetensors"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(package_files.importlib.resources, "files", lambda _: tmp_path)
    assert resolve_weights("package:small") == tmp_path / "assets" / "small.safetensors"
    for name in ("package:smal", "package:../outside"):
        with pytest.raises(WeightsError, match=r"not in this package \(has package:small\)"):
            resolve_weights(name)
    assert resolve_weights(str(tmp_path / "outside.safetensors")) == tmp_path / "outside.safetensors"
    with pytest.raises(WeightsError, match="no such file"):
        resolve_weights(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04\x00\x00\x08\x08" + bytes(90), "begins as a pickle does, .*not read: convert it to safetensors"),
        (pickle.dumps({"weight": [0.0] * 40}), "begins as a pickle does"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>" + bytes(90), "begins as a web page does"),
        (b"", r"damaged, or no safetensors file \([^)]*\)$"),
        ((0x80).to_bytes(8, "little") + b'{"a": {', r"damaged, or no safetensors file \([^)]*\)$"),
    ],
)
def test_a_file_of_another_kind_is_named_without_unsafe_advice(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    for read in (read_metadata, open_file):
        with pytest.raises(WeightsError, match=words) as error:
            read(path)
        assert "weights_only" not in str(error.value)
    path.unlink()
    path.mkdir()
    for read in (read_metadata, open_file):
        with pytest.raises(WeightsError, match="is a folder, must be a safetensors file"):
            read(path)
