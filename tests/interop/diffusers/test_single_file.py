"""One-file checkpoints come back bit for bit, and what does not fit is named by the file's own keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers import tensor_files
from genaffect_jax.interop.diffusers.components import AUTOENCODER, TRANSFORMER
from genaffect_jax.interop.diffusers.single_file_writer import write_single_file
from genaffect_jax.interop.diffusers.weights import read_autoencoder, read_transformer, read_transformer_config
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.functional import Functional, Parameters

CONFIG = MMDiTConfig(
    sample_size=6,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=6,
    pooled_projection_dim=5,
    in_channels=4,
    pos_embed_max_size=3,
    dual_attention_layers=(0, 1),
    register_tokens=0,
)
DECODER = dataclasses.replace(AutoencoderConfig.sd3(), block_out_channels=(32, 64), latent_channels=4)
X, V = "model.diffusion_model.", "first_stage_model."


def random_parameters(network: Functional) -> Parameters:
    rng = np.random.default_rng(0)
    return {n: jnp.asarray(rng.standard_normal(s.shape, np.float32)) for n, s in network.shapes.items()}


@pytest.fixture(scope="module")
def networks():
    return (
        (CONFIG, random_parameters(TRANSFORMER.network(CONFIG))),
        (DECODER, random_parameters(AUTOENCODER.network(DECODER))),
    )


@pytest.fixture(scope="module")
def saved(networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests change copies only."""
    path = tmp_path_factory.mktemp("single") / "whole.safetensors"
    write_single_file(path, *networks, dtype="float32", metadata={"a": "b"}, hash_entry="sha")
    return path


def assert_same(found: Parameters, expected: Parameters) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_checkpoint_comes_back_bit_for_bit(networks, saved: Path) -> None:
    (_, transformer), (_, autoencoder) = networks
    config, found = read_transformer(saved)
    assert config == read_transformer_config(saved) == CONFIG
    assert_same(found, transformer)
    config, found = read_autoencoder(saved)
    assert config == DECODER
    assert_same(found, autoencoder)


def test_rows_and_halves_lie_where_the_original_network_reads_them(networks, saved: Path) -> None:
    (_, parameters), (_, autoencoder) = networks
    tensors = load_file(saved)
    qkv = tensors[f"{X}joint_blocks.1.context_block.attn.qkv.weight"]  # blocks 0 and 1 are dual, block 2 is the last
    for i, name in enumerate(("query", "key", "value")):
        kernel = parameters[f"segments.0.layers.text_qkv.{name}.kernel"][1]
        np.testing.assert_array_equal(qkv[16 * i : 16 * (i + 1)], kernel.T)
    for key, name, layer in (
        ("final_layer", "out_modulation", ...),
        ("joint_blocks.2.context_block", "segments.1.layers.text_modulation", 0),
    ):
        scale, shift = np.split(np.asarray(parameters[f"{name}.linear.bias"][layer]), 2)
        np.testing.assert_array_equal(tensors[f"{X}{key}.adaLN_modulation.1.bias"], [*shift, *scale])
    inner = parameters["segments.0.layers.text_modulation.linear.bias"][0]
    np.testing.assert_array_equal(tensors[f"{X}joint_blocks.0.context_block.adaLN_modulation.1.bias"], inner)
    query = tensors[f"{V}encoder.mid.attn_1.q.weight"]
    assert query.shape == (64, 64, 1, 1)
    np.testing.assert_array_equal(query[:, :, 0, 0].T, autoencoder["encoder.mid_block.attentions.0.to_q.kernel"])
    # The decoder's level 1 has half the size, its level 0 the whole; the up blocks go the other way.
    up = autoencoder["decoder.up_blocks.0.resampler.conv.kernel"]
    np.testing.assert_array_equal(tensors[f"{V}decoder.up.1.upsample.conv.weight"].transpose(2, 3, 1, 0), up)


def test_the_header_holds_the_entries_and_the_hash_of_the_numbers(saved: Path) -> None:
    content = saved.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert (8 + size) % 8 == 0
    assert header["__metadata__"] == {
        "format": "pt",
        "a": "b",
        "sha": f"0x{hashlib.sha256(content[8 + size :]).hexdigest()}",
    }


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


ONE = np.ones(1, np.float32)
BROKEN = {
    "truncated": (cut, "damaged"),
    "pickle": (lambda p: p.write_bytes(b"\x80\x04 a pickle"), "damaged"),
    "not there": (lambda p: p.unlink(), "no such file"),
    "key of no network": (edit(lambda t: t.update(new=ONE)), r"unknown new; keys must begin with"),
    "text encoder by another name": (edit(lambda t: t.update({"text_encoder.a": ONE})), r"unknown text_encoder\.a"),
    "unknown key": (edit(lambda t: t.update({f"{X}new": ONE})), rf"unknown {X}new \(1,\)"),
    "missing key": (
        edit(lambda t: t.pop(f"{X}joint_blocks.1.x_block.attn2.proj.bias")),
        rf"missing {X}joint_blocks\.1\.x_block\.attn2\.proj\.bias \(16,\)",
    ),
    "missing key that decides the configuration": (
        edit(lambda t: t.pop(f"{X}context_embedder.weight")),
        rf"under '{X}': missing context_embedder\.weight",
    ),
    "missing block": (
        edit(lambda t: [t.pop(key) for key in list(t) if "joint_blocks.1." in key]),
        rf"missing {X}joint_blocks\.1\.context_block\.attn\.qkv\.weight",
    ),
    "wrong shape": (
        edit(lambda t: t.update({f"{X}joint_blocks.0.x_block.attn.qkv.bias": ONE})),
        r"attn\.qkv\.bias has shape \(1,\), must be \(48,\)",
    ),
    "wrong number of axes": (
        edit(lambda t: t.update({f"{X}pos_embed": ONE})),
        r"pos_embed has shape \(1,\), must have 3 axes",
    ),
    "wrong type": (
        edit(lambda t: t.update({f"{X}final_layer.linear.bias": np.ones(16)})),
        r"final_layer\.linear\.bias has type F64",
    ),
    "no transformer": (
        edit(lambda t: [t.pop(key) for key in list(t) if key.startswith(X)]),
        rf"no key begins with {X}",
    ),
    "weight file of this package": (
        lambda p: save_weights({"a": jnp.ones(1)}, p, "float32", CONFIG),
        rf"no one-file checkpoint with this network: no key begins with {X}",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_does_not_fit_is_refused_with_its_reason(case: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(saved.read_bytes())
    change, message = BROKEN[case]
    change(path)
    for read in (read_transformer, read_transformer_config):
        with pytest.raises(WeightsError, match=message) as error:
            read(path)
        assert "broken.safetensors" in str(error.value)


def test_an_autoencoder_that_does_not_fit_is_refused_with_its_reason(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    for change, message in (
        (lambda t: t.update({f"{V}quant_conv.weight": ONE}), rf"unknown {V}quant_conv\.weight"),
        (lambda t: t.pop(f"{V}decoder.mid.attn_1.k.bias"), rf"missing {V}decoder\.mid\.attn_1\.k\.bias"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith(V)], rf"no key begins with {V}"),
    ):
        tensors = load_file(saved)
        change(tensors)
        save_file(tensors, path)
        with pytest.raises(WeightsError, match=message):
            read_autoencoder(path)


def test_text_encoders_in_the_file_are_ignored(networks, saved: Path, tmp_path: Path) -> None:
    tensors = {**load_file(saved), "text_encoders.t5xxl.transformer.spiece_model": np.zeros(3, np.uint8)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert_same(read_transformer(tmp_path / "a.safetensors")[1], networks[0][1])


def test_a_file_has_no_variant(saved: Path) -> None:
    with pytest.raises(WeightsError, match=r"variant=fp16: .*: a file has no variants"):
        read_transformer(saved, variant="fp16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": 1.0}, r"scaling_factor=1\.0 \(readers take 1\.5305\)"),
        ({"norm_num_groups": 16}, r"norm_num_groups=16 \(readers take 32\)"),
    ],
)
def test_what_a_checkpoint_cannot_say_of_an_autoencoder_is_refused(networks, changes, message, tmp_path) -> None:
    transformer, (config, parameters) = networks
    changed = dataclasses.replace(config, **changes)
    with pytest.raises(WeightsError, match=message):
        write_single_file(tmp_path / "a.safetensors", transformer, (changed, parameters), dtype="float32", metadata={})
    assert not any(tmp_path.iterdir())


def test_narrow_heads_without_normalised_queries_are_refused_as_readers_take_64(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, qk_norm="none", num_attention_heads=16)
    parameters = random_parameters(TRANSFORMER.network(config))
    with pytest.raises(WeightsError, match=r"attention_head_dim=8 \(readers take 64\)"):
        write_single_file(tmp_path / "a.safetensors", (config, parameters), None, dtype="float32", metadata={})


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(networks, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    (config, parameters), _ = networks
    changed = {**parameters, "out.bias": parameters["out.bias"].at[3].set(1e30)}
    with pytest.raises(WeightsError, match=r"proj_out\.bias holds numbers that are not finite as float16"):
        write_single_file(path, (config, changed), None, dtype="float16", metadata={})
    with pytest.raises(WeightsError, match="unknown extra"):
        write_single_file(path, (config, {**parameters, "extra": jnp.ones(1)}), None, dtype="float32", metadata={})

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_files.np, "ascontiguousarray", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_single_file(path, (config, parameters), None, dtype="float32", metadata={})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_text() == "mine"


def test_numbers_are_rounded_to_the_type_asked_for(networks, tmp_path: Path) -> None:
    (config, parameters), _ = networks
    write_single_file(tmp_path / "a.safetensors", (config, parameters), None, dtype="bfloat16", metadata={})
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118 (no mapping)
    found = read_transformer(tmp_path / "a.safetensors")[1]
    assert_same(found, {name: p.astype(jnp.bfloat16) for name, p in parameters.items()})
