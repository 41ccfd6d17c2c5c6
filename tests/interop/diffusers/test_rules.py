"""The conversion engine accepts a complete one-to-one match only, and says all that is wrong at once."""

from __future__ import annotations

import numpy as np
import pytest

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.configs import (
    autoencoder_config,
    autoencoder_values,
    transformer_config,
    transformer_values,
)
from genaffect_jax.interop.diffusers.rules import CONV, LINEAR, POSITIONS, SAME, Rule, match, patch_linear
from genaffect_jax.models.mmdit.embeddings import patchify

RULES = (
    Rule("out.kernel", "proj.weight", LINEAR),
    Rule("blocks.{i}.mlp.{j}.bias", "layers.{i}.ff.net.{j}.bias"),
    Rule("table", "pos", POSITIONS),
)
PARAMETERS = {
    "out.kernel": (2, 3),
    "segments.0.layers.mlp.0.bias": (2, 5),
    "segments.1.layers.mlp.0.bias": (1, 5),
    "table": (4, 4, 6),
}
FILE = {
    "proj.weight": (3, 2),
    "layers.0.ff.net.0.bias": (5,),
    "layers.1.ff.net.0.bias": (5,),
    "layers.2.ff.net.0.bias": (5,),
    "pos": (1, 16, 6),
}


def test_stacked_layers_count_through_all_segments() -> None:
    pieces = {p.key: p for p in match(RULES, PARAMETERS, FILE, "file")}
    assert {key: p.shape for key, p in pieces.items()} == FILE
    places = [(p.parameter, p.layer) for key, p in sorted(pieces.items()) if key.startswith("layers")]
    assert places == [
        ("segments.0.layers.mlp.0.bias", 0),
        ("segments.0.layers.mlp.0.bias", 1),
        ("segments.1.layers.mlp.0.bias", 0),
    ]
    assert (pieces["proj.weight"].parameter, pieces["proj.weight"].layer) == ("out.kernel", None)


def test_keys_of_a_file_to_be_written_are_those_of_a_file_read() -> None:
    assert match(RULES, PARAMETERS, None, "file") == match(RULES, PARAMETERS, FILE, "file")


def test_everything_that_is_wrong_is_named_in_one_error() -> None:
    rules = (*RULES, Rule("once", "shared"), Rule("again", "shared"), Rule("table", "pos_2"))
    parameters = {**PARAMETERS, "stray": (1,), "once": (1,), "again": (1,)}
    found = {**FILE, "foreign.weight": (7,), "layers.9.ff.net.0.bias": (5,), "proj.weight": (2, 3), "shared": (1,)}
    del found["layers.1.ff.net.0.bias"]
    with pytest.raises(WeightsError) as error:
        match(rules, parameters, found, "a folder")
    for part in (
        "a folder: does not fit",
        "parameter stray: unmapped",
        "parameter table: mapped twice, to pos and pos_2",
        "key shared: mapped twice, by parameters once and again",
        "key shared: mapped twice, to once and again",
        "key foreign.weight: unmapped",
        "key layers.9.ff.net.0.bias: superfluous, this network has no blocks.9.mlp.0.bias",
        "key layers.1.ff.net.0.bias: missing (shape (5,))",
        "key proj.weight: shape (2, 3), must be (3, 2)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("key", ["xproj.weight", "proj.weightx", "proj_weight", "layers.a.ff.net.0.bias"])
def test_patterns_match_whole_names_only(key: str) -> None:
    with pytest.raises(WeightsError, match=f"key {key}: unmapped"):
        match(RULES, PARAMETERS, {**FILE, key: (3, 2)}, "file")


@pytest.mark.parametrize(
    ("transform", "theirs", "ours"),
    [
        (SAME, (3, 4), (3, 4)),
        (LINEAR, (3, 4), (4, 3)),
        (CONV, (2, 3, 4, 5), (4, 5, 3, 2)),
        (POSITIONS, (1, 9, 4), (3, 3, 4)),
        (patch_linear(2), (6, 3, 2, 2), (12, 6)),
    ],
)
def test_transforms_are_undone_by_their_inverse(transform, theirs, ours) -> None:
    tensor = np.arange(np.prod(theirs)).reshape(theirs)
    assert transform.to_ours(tensor).shape == ours
    assert transform.their_shape(ours) == theirs
    np.testing.assert_array_equal(transform.to_theirs(transform.to_ours(tensor)), tensor)


def test_a_patch_convolution_becomes_the_matrix_of_our_tokens() -> None:
    rng = np.random.default_rng(0)
    weight, image = rng.standard_normal((5, 3, 2, 2)), rng.standard_normal((4, 6, 3))
    expected = np.einsum("dcpq,ipjqc->ijd", weight, image.reshape(2, 2, 3, 2, 3)).reshape(6, 5)
    found = np.asarray(patchify(image, 2)) @ patch_linear(2).to_ours(weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# The published configuration files, without the keys that begin with an underscore.
SD3_MEDIUM = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
SD3_VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def test_published_configurations_are_those_of_the_named_constructors() -> None:

    assert transformer_config(SD3_MEDIUM) == MMDiTConfig.sd3_medium()
    assert transformer_config({**SD3_MEDIUM, "_class_name": "x", "qk_norm": None, "dual_attention_layers": None}) == (
        MMDiTConfig.sd3_medium()
    )
    medium = {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))}
    assert transformer_config({**SD3_MEDIUM, **medium}) == MMDiTConfig.sd35_medium()
    assert autoencoder_config(SD3_VAE) == AutoencoderConfig.sd3()
    for constructor in (MMDiTConfig.sd3_medium, MMDiTConfig.sd35_medium, MMDiTConfig.sd35_large):
        assert transformer_config(transformer_values(constructor())) == constructor()
    assert autoencoder_config(autoencoder_values(AutoencoderConfig.sd3())) == AutoencoderConfig.sd3()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm=layer_norm"),
        ({"num_layers": "24"}, "num_layers='24'"),
        ({"caption_projection_dim": 1024}, "caption_projection_dim=1024"),
        ({"rope": True}, r"unknown keys \['rope'\]"),
        ({"dual_attention_layers": [30]}, r"dual_attention_layers=\[30\]"),
        ({"dual_attention_layers": 3}, "dual_attention_layers=3"),
    ],
)
def test_transformers_that_this_network_is_not_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transformer_config({**SD3_MEDIUM, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_quant_conv": True}, "use_quant_conv=True"),
        ({"use_post_quant_conv": True}, "use_post_quant_conv=True"),
        ({"act_fn": "relu"}, "act_fn='relu'"),
        ({"latents_mean": [0.0] * 16}, "latents_mean="),
        ({"mid_block_add_attention": False}, "mid_block_add_attention=False"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]}, "down_block_types="),
        ({"decoder_depth": 3}, r"unknown keys \['decoder_depth'\]"),
    ],
)
def test_autoencoders_that_this_network_is_not_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        autoencoder_config({**SD3_VAE, **change})


def test_absent_keys_have_the_defaults_of_diffusers() -> None:
    with pytest.raises(ConfigError, match="use_quant_conv=True"):
        autoencoder_config({k: v for k, v in SD3_VAE.items() if k != "use_quant_conv"})
    assert autoencoder_config({**SD3_VAE, "shift_factor": None}).shift_factor == 0.0
    assert transformer_config({**SD3_MEDIUM, "out_channels": None}).out_channels == 16


@pytest.mark.parametrize("change", [{"register_tokens": 4}, {"pooled_projection_dim": 0}])
def test_what_diffusers_does_not_have_is_not_written(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        transformer_values(MMDiTConfig(**{"register_tokens": 0, "pooled_projection_dim": 8, **change}))


def test_every_setting_of_the_networks_is_a_key_of_the_files() -> None:
    assert set(autoencoder_values(AutoencoderConfig())) >= set(AutoencoderConfig.__dataclass_fields__)
    assert set(transformer_values(MMDiTConfig(register_tokens=0, pooled_projection_dim=8))) == (
        set(MMDiTConfig.__dataclass_fields__) - {"register_tokens", "scan_layers", "remat"}
    )
