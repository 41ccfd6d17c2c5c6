"""Configurations refuse what is not allowed, and survive the trip through JSON."""

import dataclasses
import json
from pathlib import Path

import pytest

from genaffect_jax.config import (
    AutoencoderConfig,
    AutoencoderRun,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    FlowConfig,
    LoraConfig,
    MeshConfig,
    MMDiTConfig,
    ModelConfig,
    SamplingConfig,
    TextConfig,
    TrainConfig,
    from_json,
    to_json,
)
from genaffect_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TrainConfig(batch_size=-3), "train.batch_size=-3"),
        (lambda: TrainConfig(learning_rate=0.0), "train.learning_rate=0.0"),
        (lambda: TrainConfig(learning_rate=float("nan")), "train.learning_rate=nan"),
        (lambda: TrainConfig(ema_decay=1.0), "train.ema_decay=1.0"),
        (lambda: DataConfig(holdout=1.0), "data.holdout=1.0"),
        (lambda: DataConfig(source="folder"), "data.root=None"),
        (lambda: DataConfig(expressions_per_identity=1), "data.expressions_per_identity=1"),
        (lambda: FlowConfig(drop_identity=-0.1), "flow.drop_identity=-0.1"),
        (lambda: FlowConfig(drop_text=1.0), "flow.drop_text=1.0"),
        (lambda: FlowConfig(mode_scale=1.8), "flow.mode_scale=1.8"),
        (lambda: FlowConfig(drop_all=1.0), "flow.drop_all=1.0"),
        (lambda: FlowConfig(consistency=1.5), "flow.consistency=1.5"),
        (lambda: FlowConfig(drop_consistency=1.0), "flow.drop_consistency=1.0"),
        (
            lambda: DenoiserRun(data=DataConfig(expressions_per_set=1), flow=FlowConfig(consistency=0.5)),
            "flow.consistency=0.5: must be 0 with data.expressions_per_set = 1",
        ),
        (lambda: DataConfig(pairs="self"), "data.expressions_per_set=3: must be 1 with pairs 'self'"),
        (
            lambda: ModelConfig(transformer_weights="sd3", conditioning=ConditioningConfig(attention="text")),
            "conditioning.attention=text: must be decoupled with transformer_weights",
        ),
        (lambda: TrainConfig(trainable=()), "train.trainable=()"),
        (lambda: LoraConfig(rank=-1), "lora.rank=-1"),
        (lambda: LoraConfig(alpha=0.0), "lora.alpha=0.0"),
        (lambda: LoraConfig(rank=1, targets=()), "lora.targets=()"),
        (lambda: TextConfig(template="a {wrod} face"), "text.template='a {wrod} face': must contain {word}"),
        (lambda: TextConfig(max_sequence_length=0), "text.max_sequence_length=0"),
        (lambda: DenoiserRun(text=TextConfig(embeddings=Path("p"))), "text.embeddings=p: a model with register tokens"),
        (
            lambda: DenoiserRun(
                data=DataConfig(image_size=128), model=ModelConfig(mmdit=MMDiTConfig(register_tokens=0))
            ),
            "text.embeddings=None: a model without register tokens needs",
        ),
        (
            lambda: DenoiserRun(model=ModelConfig(mmdit=MMDiTConfig(pooled_projection_dim=8))),
            "mmdit.pooled_projection_dim=8: must be 0 with register tokens",
        ),
        (
            lambda: DenoiserRun(
                model=ModelConfig(mmdit=MMDiTConfig(register_tokens=0)), text=TextConfig(embeddings=Path("p"))
            ),
            "mmdit.pooled_projection_dim=0: must be at least 1 without register tokens",
        ),
        (lambda: MeshConfig(data=0), "mesh.data=0"),
        (lambda: MeshConfig(tensor=0), "mesh.tensor=0"),
        (lambda: MMDiTConfig(dual_attention_layers=(9,)), "mmdit.dual_attention_layers=[9]"),
        (lambda: AutoencoderConfig(block_out_channels=(16, 30)), "autoencoder.block_out_channels=30"),
        (lambda: ModelConfig(autoencoder=AutoencoderConfig(latent_channels=4)), "mmdit.in_channels"),
        (lambda: DenoiserRun(data=DataConfig(image_size=256)), "data.image_size=256"),
        (lambda: AutoencoderRun(kl_weight=-1.0), "kl_weight=-1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ConfigError) as error:
        make()
    assert name in str(error.value)


@pytest.mark.parametrize("config", [DenoiserRun(), AutoencoderRun()])
def test_json_gives_back_the_same_configuration(config):
    assert from_json(type(config), to_json(config)) == config


def test_paths_and_tuples_survive_json(tmp_path):
    config = DenoiserRun(data=DataConfig(source="folder", root=tmp_path))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, mmdit=MMDiTConfig(dual_attention_layers=(0, 2)))
    )
    assert from_json(DenoiserRun, to_json(config)) == config


def test_json_with_unknown_and_missing_fields_names_them():
    values = json.loads(to_json(DenoiserRun()))
    values["train"]["lerning_rate"] = 1.0
    del values["train"]["steps"]
    with pytest.raises(ConfigError, match=r"unknown fields \['lerning_rate'\], missing fields \['steps'\]"):
        from_json(DenoiserRun, json.dumps(values))


def test_files_written_before_a_field_existed_mean_its_default():
    values = json.loads(to_json(DenoiserRun()))
    del values["data"]["align"]
    assert from_json(DenoiserRun, json.dumps(values)) == DenoiserRun()


@pytest.mark.parametrize("value", ["12", True, None, 1.5])
def test_json_of_the_wrong_type_is_refused(value):
    values = json.loads(to_json(DenoiserRun()))
    values["train"]["steps"] = value
    with pytest.raises(ConfigError, match="steps"):
        from_json(DenoiserRun, json.dumps(values))


@pytest.mark.parametrize("value", [True, 0, 1.5, [], {}])
def test_a_path_in_json_is_a_text(value):
    values = json.loads(to_json(DenoiserRun()))
    values["data"]["root"] = value
    with pytest.raises(ConfigError, match=r"data.root=.*must be a path"):
        from_json(DenoiserRun, json.dumps(values))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "\0", "NaN", "nul"])
def test_text_that_is_no_configuration_is_one_error(text):
    with pytest.raises(ConfigError, match=r"^(configuration: not JSON|DenoiserRun=)") as refused:
        from_json(DenoiserRun, text)
    assert "\n" not in str(refused.value)


def test_a_whole_number_too_large_for_a_float_is_refused_by_name():
    values = json.loads(to_json(DenoiserRun()))
    values["data"]["pose_scale"] = -(10**400)
    with pytest.raises(ConfigError, match=r"data.pose_scale=-1000.*must be finite"):
        from_json(DenoiserRun, json.dumps(values))


def test_derived_fields_follow_the_others():
    network = MMDiTConfig(in_channels=8, num_attention_heads=5, attention_head_dim=16)
    assert (network.out_channels, network.caption_projection_dim) == (8, 80)
    wider = dataclasses.replace(network, num_attention_heads=6)
    assert wider.caption_projection_dim == wider.width == 96


def test_json_with_a_derived_field_that_does_not_fit_is_refused():
    values = json.loads(to_json(DenoiserRun()))
    values["model"]["mmdit"]["caption_projection_dim"] = 7
    with pytest.raises(ConfigError, match=r"mmdit\.caption_projection_dim=7: must be 192"):
        from_json(DenoiserRun, json.dumps(values))


def test_guidance_computes_no_branch_of_weight_zero() -> None:
    assert SamplingConfig().mode == "expression"
    assert SamplingConfig(guidance_identity=1.5).mode == "decoupled"
    assert SamplingConfig(guidance_expression=1.0).mode == "none"
    assert SamplingConfig(guidance=1.0, guidance_identity=2.0).mode == "none"
    assert SamplingConfig(guidance=2.0).mode == "joint"
