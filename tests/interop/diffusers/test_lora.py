"""LoRA files of other programs: what they add to which kernels, and a clear error for all that is not understood."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.sd3_runs import MMDIT, run_config

from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.lora import add_loras, kernel_pieces, read_lora
from genaffect_jax.interop.diffusers.lora_writer import write_lora
from genaffect_jax.io.weight_file import checksum
from genaffect_jax.models.build import build_networks

Tensors = dict[str, np.ndarray]
WIDTH = MMDIT.width
QUERY = "mmdit.segments.1.layers.image_qkv.query.kernel"  # block 0 is dual, block 1 plain, block 2 the last
KEY, VALUE = (QUERY.replace("query", name) for name in ("key", "value"))


@pytest.fixture(scope="module")
def zeros() -> dict[str, jnp.ndarray]:
    """A denoiser of zeros: after adding, a kernel is what was added."""
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in build_networks(run_config().model)[0].shapes.items()}


def pair(
    module: str, out: int = WIDTH, width: int = WIDTH, rank: int = 2, names=("lora_A", "lora_B"), seed=0
) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        f"{module}.{names[0]}.weight": rng.standard_normal((rank, width), np.float32),
        f"{module}.{names[1]}.weight": rng.standard_normal((out, rank), np.float32),
    }


def product(tensors: Tensors) -> np.ndarray:
    """[in, out] of the first two tensors."""
    down, up = list(tensors.values())[:2]
    return (np.asarray(up, np.float32) @ np.asarray(down, np.float32)).T


def added(path: Path, zeros, tensors: Tensors, metadata: dict | None = None, weight: float = 1.0, **named: dict):
    """The parameters that a file changes."""
    header = {} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(tensors, path / "a.safetensors", metadata={"format": "pt", **header})
    file = read_lora(path / "a.safetensors", weight, named.get("config", MMDIT))
    found = add_loras(zeros, [file])
    assert found.keys() == zeros.keys()
    changed = {name: np.asarray(value) for name, value in found.items() if value is not zeros[name]}
    assert changed.keys() == file.parameters
    return changed


NAME = "transformer_blocks.1.attn.to_q"


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "base_model.model.transformer.", ""])
@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_down", "lora_up")])
def test_diffusers_names_with_every_prefix_change_their_layer_and_no_other(prefix, names, zeros, tmp_path) -> None:
    tensors = pair(f"{prefix}{NAME}", names=names)
    (name, value), *others = added(tmp_path, zeros, tensors).items()
    assert (name, others) == (QUERY, [])
    assert value.shape == (1, WIDTH, WIDTH)
    np.testing.assert_allclose(value[0], product(tensors), atol=1e-6)


def test_stacked_layers_get_their_own_sum(tmp_path: Path) -> None:
    config = dataclasses.replace(MMDIT, num_layers=4)
    network = build_networks(run_config(num_layers=4).model)[0]
    nothing = {name: jnp.zeros(s.shape, s.dtype) for name, s in network.shapes.items()}
    parts = [pair(f"transformer.transformer_blocks.{i}.attn.to_q", seed=i) for i in (2, 1)]
    changed = added(tmp_path, nothing, parts[0] | parts[1], config=config)
    assert list(changed) == [QUERY]
    np.testing.assert_allclose(changed[QUERY], np.stack([product(parts[1]), product(parts[0])]), atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_are_added_in_single_precision(kind, zeros, tmp_path) -> None:
    tensors = {key: value.astype(kind) for key, value in pair(NAME).items()}
    value = added(tmp_path, zeros, tensors, weight=1e-3)[QUERY]
    assert value.dtype == np.float32
    np.testing.assert_allclose(value[0], 1e-3 * product(tensors), rtol=1e-5, atol=1e-9)


ALPHAS = {
    "none": ({}, None, 1.0),
    "key": ({f"transformer.{NAME}.alpha": np.array(6, np.float32)}, None, 3.0),
    "whole number in one entry": ({f"transformer.{NAME}.alpha": np.array([6])}, None, 3.0),
    "configuration": ({}, {"transformer.r": 2, "transformer.lora_alpha": 5}, 2.5),
    "configuration without prefix": ({}, {"r": 2, "lora_alpha": 5}, 2.5),
    "configuration of others beside": ({}, {"text_encoder.r": 9, "transformer.r": 2, "transformer.lora_alpha": 5}, 2.5),
    "patterns": (
        {},
        {
            "transformer.r": 9,
            "transformer.lora_alpha": 5,
            "transformer.rank_pattern": {"to_k": 7, "attn.to_q": 2},
            "transformer.alpha_pattern": {"^transformer_blocks.1.attn.to_q": 8, "to_q": 1},
        },
        4.0,
    ),
    "a pattern is no part of a word": ({}, {"r": 2, "lora_alpha": 5, "alpha_pattern": {"o_q": 8}}, 2.5),
    "rank-stabilised": ({}, {"r": 2, "lora_alpha": 5, "use_rslora": True}, 5 / math.sqrt(2)),
    "the same in both": ({f"transformer.{NAME}.alpha": np.array(5, np.float32)}, {"r": 2, "lora_alpha": 5}, 2.5),
}


@pytest.mark.parametrize("case", ALPHAS)
def test_the_scale_is_alpha_over_rank_wherever_alpha_stands(case: str, zeros, tmp_path: Path) -> None:
    more, metadata, scale = ALPHAS[case]
    tensors = pair(f"transformer.{NAME}")
    value = added(tmp_path, zeros, {**tensors, **more}, metadata, weight=0.5)[QUERY]
    np.testing.assert_allclose(value[0], 0.5 * scale * product(tensors), rtol=1e-4, atol=1e-5)


def test_the_configuration_beside_a_file_of_peft_counts_and_is_part_of_its_name(zeros, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    tensors = pair(f"base_model.model.{NAME}")
    np.testing.assert_allclose(added(tmp_path, zeros, tensors)[QUERY][0], 4 * product(tensors), atol=1e-5)
    name = read_lora(tmp_path / "a.safetensors", 0.25, MMDIT).name
    sums = [checksum(tmp_path / file)[:12] for file in ("a.safetensors", "adapter_config.json")]
    assert name == f"a.safetensors:0.25 {sums[0]} {sums[1]}"
    # A file of diffusers, which holds its own configuration, has nothing to do with it.
    tensors = pair(f"transformer.{NAME}")
    np.testing.assert_allclose(added(tmp_path, zeros, tensors)[QUERY][0], product(tensors), atol=1e-6)


def test_fused_rows_of_kohya_go_to_queries_keys_and_values(zeros, tmp_path: Path) -> None:
    tensors = pair("lora_unet_joint_blocks_1_x_block_attn_qkv", 3 * WIDTH, names=("lora_down", "lora_up"))
    alpha = {"lora_unet_joint_blocks_1_x_block_attn_qkv.alpha": np.array(1, np.float32)}
    changed = added(tmp_path, zeros, {**tensors, **alpha})
    assert changed.keys() == {QUERY, KEY, VALUE}
    for name, rows in zip((QUERY, KEY, VALUE), np.split(product(tensors).T, 3), strict=True):
        np.testing.assert_allclose(changed[name][0], 0.5 * rows.T, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "name", "swapped"),
    [
        ("final_layer_adaLN_modulation_1", "mmdit.out_modulation.linear.kernel", True),
        (
            "joint_blocks_2_context_block_adaLN_modulation_1",
            "mmdit.segments.2.layers.text_modulation.linear.kernel",
            True,
        ),
        (
            "joint_blocks_1_context_block_adaLN_modulation_1",
            "mmdit.segments.1.layers.text_modulation.linear.kernel",
            False,
        ),
    ],
)
def test_shift_and_scale_of_kohya_change_places_in_the_last_modulations(module, name, swapped, zeros, tmp_path) -> None:
    rows = zeros[name].shape[-1]
    tensors = pair(f"lora_unet_{module}", rows, names=("lora_down", "lora_up"))
    first, second = np.split(product(tensors), 2, axis=1)
    expected = np.concatenate([second, first] if swapped else [first, second], axis=1)
    (found, value), *others = added(tmp_path, zeros, tensors).items()
    assert (found, others) == (name, [])
    np.testing.assert_allclose(value.reshape(expected.shape), expected, atol=1e-6)


def test_several_files_add_up_with_their_weights(zeros, tmp_path: Path) -> None:
    parts = [pair(f"transformer.{NAME}", seed=1), pair(f"transformer.{NAME}", rank=3, seed=2)]
    other = pair("transformer.proj_out", zeros["mmdit.out.kernel"].shape[1], seed=3)
    save_file(parts[0], tmp_path / "a.safetensors")
    save_file({**parts[1], **other}, tmp_path / "b.safetensors")
    files = [read_lora(tmp_path / "a.safetensors", 0.8, MMDIT), read_lora(tmp_path / "b.safetensors", -0.5, MMDIT)]
    start = {**zeros, QUERY: jnp.full_like(zeros[QUERY], 2.0)}
    found = add_loras(start, files)
    np.testing.assert_allclose(found[QUERY][0], 2 + 0.8 * product(parts[0]) - 0.5 * product(parts[1]), atol=1e-5)
    np.testing.assert_allclose(found["mmdit.out.kernel"], -0.5 * product(other), atol=1e-6)
    assert {name for name, value in found.items() if value is not start[name]} == {QUERY, "mmdit.out.kernel"}


def test_every_kernel_of_the_transformer_can_be_changed_and_no_branch(zeros) -> None:
    changeable = {f"mmdit.{piece.parameter}" for piece in kernel_pieces(MMDIT).values()}
    kernels = {name for name in zeros if name.endswith(".kernel") and name.startswith("mmdit.")}
    assert kernels - changeable == {name for name in kernels if ".identity." in name or ".expression." in name}
    assert changeable <= kernels


def test_models_with_register_tokens_take_files_for_their_layers(tmp_path: Path) -> None:
    config = run_config(register_tokens=2, pooled_projection_dim=0).model
    network = build_networks(config)[0]
    nothing = {name: jnp.zeros(s.shape, s.dtype) for name, s in network.shapes.items()}
    assert list(added(tmp_path, nothing, pair(f"transformer.{NAME}"), config=config.mmdit)) == [QUERY]


GOOD = pair(f"transformer.{NAME}")
A, B = GOOD
ONE = np.ones(1, np.float32)
UNKNOWN = {
    "no LoRA keys": ({"a.weight": ONE, "b.weight": ONE}, r"holds no LoRA keys \(the first key is a\.weight\)"),
    "empty": ({}, "it is empty"),
    "bias": ({**GOOD, B.replace("weight", "bias"): ONE}, r"to_q\.lora_B\.bias belongs to a bias"),
    "DoRA": (
        {**GOOD, A.replace("lora_A.weight", "lora_magnitude_vector"): ONE},
        r"to_q\.lora_magnitude_vector belongs to a DoRA",
    ),
    "DoRA of kohya": ({**GOOD, "lora_unet_x.dora_scale": ONE}, r"lora_unet_x\.dora_scale belongs to a DoRA"),
    "LoKr": ({"lora_unet_x.lokr_w1": ONE, "lora_unet_x.alpha": ONE}, r"lora_unet_x\.lokr_w1 belongs to a LoKr"),
    "LoHa": ({"lora_unet_x.hada_w1_a": ONE}, r"lora_unet_x\.hada_w1_a belongs to a LoHa"),
    "text encoder": (
        {**GOOD, **pair("text_encoder.layers.0")},
        r"text_encoder\.layers\.0\.lora_A\.weight belongs to a",
    ),
    "text encoder of kohya": (
        {**GOOD, **pair("lora_te1_x", names=("lora_down", "lora_up"))},
        r"lora_te1_x\.lora_down\.weight belongs to a text encoder",
    ),
    "other key": ({**GOOD, "new": ONE}, r"new is not understood; understood are"),
    "no partner": ({A: GOOD[A]}, rf"{A}: its factor 'up' is missing"),
    "alpha alone": ({**GOOD, "transformer.x.alpha": ONE}, r"transformer\.x\.alpha: its factor 'down' is missing"),
    "factor twice": ({**GOOD, A.replace("_A", ".down"): GOOD[A]}, "are the same factor"),
    "kernel twice": ({**GOOD, **pair(NAME)}, r"transformer_blocks\.1\.attn\.to_q\.lora_B\.weight .*the same kernel"),
    "no such layer": (
        pair("transformer.transformer_blocks.3.attn.to_q"),
        r"3\.attn\.to_q\.lora_A\.weight matches nothing: this network has no layer transformer_blocks\.3\.attn\.to_q",
    ),
    "no such layer of kohya": (
        pair("lora_unet_joint_blocks_2_context_block_mlp_fc1"),
        "this network has no layer joint_blocks_2_context_block_mlp_fc1",
    ),
    "a norm": (pair("transformer.transformer_blocks.1.attn.norm_q"), "has no layer"),
    "wrong width": (pair(f"transformer.{NAME}", width=9), rf"{A} has shape \(2, 9\), must be \(2, 16\)"),
    "wrong rows": (pair(f"transformer.{NAME}", out=9), rf"{B} has shape \(9, 2\), must be \(16, 2\)"),
    "other ranks": ({A: GOOD[A], B: np.ones((16, 3), np.float32)}, rf"{A} has shape \(2, 16\) and .* \(16, 3\)"),
    "rank 0": ({A: np.ones((0, 16), np.float32), B: np.ones((16, 0), np.float32)}, "a rank of at least 1"),
    "vector": ({A: ONE, B: ONE}, rf"{A} has shape \(1,\)"),
    "not finite": ({A: GOOD[A], B: np.full((16, 2), np.nan, np.float32)}, rf"{B} holds numbers that are not finite"),
    "wrong type": ({A: GOOD[A], B: np.ones((16, 2), np.int32)}, rf"{B} has type I32"),
    "alpha of two numbers": (
        {**GOOD, f"transformer.{NAME}.alpha": np.ones(2, np.float32)},
        "must be one finite number",
    ),
}
CONFIGURATIONS = {
    "DoRA": ({"transformer.use_dora": True}, "says use_dora"),
    "another kind": ({"peft_type": "LOHA"}, "says peft_type='LOHA'"),
    "another rank": ({"r": 4, "lora_alpha": 4}, rf"{A} has rank 2, its configuration says 4"),
    "no pattern": ({"r": 2, "alpha_pattern": {"(": 1}}, "is no table of patterns"),
    "no number": ({"r": 2, "lora_alpha": "many"}, "lora_alpha='many' of .* must be a finite number"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_understood_is_named(case: str, tmp_path: Path) -> None:
    tensors, message = UNKNOWN[case]
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=message) as error:
        read_lora(tmp_path / "odd.safetensors", 1.0, MMDIT)
    assert "odd.safetensors" in str(error.value)


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    metadata, message = CONFIGURATIONS[case]
    save_file(GOOD, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(metadata)})
    with pytest.raises(WeightsError, match=message):
        read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration_is_named(text: str, tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(WeightsError, match="lora_adapter_metadata in the header"):
        read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)


def test_alphas_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    save_file(
        {**GOOD, f"transformer.{NAME}.alpha": np.array(3, np.float32)},
        tmp_path / "a.safetensors",
        metadata={"lora_adapter_metadata": json.dumps({"lora_alpha": 4})},
    )
    with pytest.raises(WeightsError, match=r"to_q\.alpha is 3, its configuration says 4"):
        read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a\.safetensors: no such file"):
        read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)
    save_file(GOOD, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-5])
    with pytest.raises(WeightsError, match=r"a\.safetensors: damaged"):
        read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)


def test_files_that_change_nothing_are_refused(zeros, tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "a.safetensors")
    save_file({A: GOOD[A], B: np.zeros((16, 2), np.float32)}, tmp_path / "zero.safetensors")
    for weight in (0.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="must be finite and not zero"):
            read_lora(tmp_path / "a.safetensors", weight, MMDIT)
    files = [read_lora(tmp_path / name, 1.0, MMDIT) for name in ("a.safetensors", "zero.safetensors")]
    with pytest.raises(WeightsError, match=r"^\S*zero\.safetensors: changes nothing"):
        add_loras(zeros, files)


def test_kernels_in_half_precision_are_not_added_to(zeros, tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "a.safetensors")
    file = read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)
    with pytest.raises(ValueError, match=r"image_qkv\.query\.kernel is bfloat16, must be float32"):
        add_loras({**zeros, QUERY: zeros[QUERY].astype(jnp.bfloat16)}, [file])


def test_a_written_file_gives_the_additions_back(zeros, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("mmdit.patch_embed.kernel", QUERY, "mmdit.segments.0.layers.image_attention.out.kernel")
    factors, expected = {}, {}
    for name in names:
        *layers, rows, columns = zeros[name].shape
        a, b = (
            rng.standard_normal((*layers, rows, 2), np.float32),
            rng.standard_normal((*layers, 2, columns), np.float32),
        )
        factors[name.removeprefix("mmdit.")] = jnp.asarray(a), jnp.asarray(b)
        expected[name] = 3 * a @ b
    write_lora(tmp_path / "a.safetensors", MMDIT, factors, 3.0)
    found = add_loras(zeros, [read_lora(tmp_path / "a.safetensors", 1.0, MMDIT)])
    assert {name for name in zeros if found[name] is not zeros[name]} == set(names)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        WeightsError, match=r"diffusers has no counterpart of segments\.0\.layers\.identity\.key\.kernel"
    ):
        write_lora(
            tmp_path / "b.safetensors",
            MMDIT,
            {"segments.0.layers.identity.key.kernel": factors["patch_embed.kernel"]},
            1.0,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
