"""Operations by arithmetic are those of the network that is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from genaffect_jax.config import ConditioningConfig, ModelConfig
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.flops import Flops, denoiser_flops, forward_flops, training_flops

SETS, EXPRESSIONS, REFERENCES, TEXT = 2, 3, 2, 5


def counted(config: ModelConfig, gradient: bool = False) -> float:
    """XLA's count of one forward (or of its gradient for all parameters), elementwise operations included."""
    denoiser, _ = build_networks(config, "float32")
    network = config.mmdit
    side, width = network.sample_size, config.conditioning.identity_embedding
    text = not network.register_tokens

    def forward(parameters, latents, reference, expression, embedding, tokens, pooled):
        model = denoiser.merge(parameters)
        conditions = model.encode_conditions(
            reference, jnp.ones(reference.shape[:2], bool), expression, embedding=embedding, text=tokens, pooled=pooled
        )
        return model(latents, jnp.full(latents.shape[:2], 0.5), conditions).prediction.sum()

    def shape(*sizes: int):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    arguments = (
        denoiser.shapes,
        shape(SETS, EXPRESSIONS, side, side, network.in_channels),
        shape(SETS, REFERENCES, side, side, network.in_channels),
        shape(SETS, EXPRESSIONS, config.conditioning.expression_width),
        shape(SETS, REFERENCES, width) if width else None,
        shape(SETS, EXPRESSIONS, TEXT, network.joint_attention_dim) if text else None,
        shape(SETS, EXPRESSIONS, network.pooled_projection_dim) if text else None,
    )
    function = jax.grad(forward) if gradient else forward
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.fixture(scope="module")
def wide(tiny_model: ModelConfig) -> ModelConfig:
    """Unrolled, and so wide that what is elementwise is little."""
    network = dataclasses.replace(
        tiny_model.mmdit,
        attention_head_dim=128,
        num_attention_heads=4,
        joint_attention_dim=512,
        scan_layers=False,
        dual_attention_layers=(0,),
    )
    return dataclasses.replace(tiny_model, mmdit=network)


@pytest.fixture(scope="module")
def with_text(wide: ModelConfig) -> ModelConfig:
    network = dataclasses.replace(wide.mmdit, register_tokens=0, pooled_projection_dim=256)
    conditioning = ConditioningConfig(identity_layers=2, identity_tokens=12, expression_tokens=2)
    return dataclasses.replace(wide, mmdit=network, conditioning=conditioning)


@pytest.mark.parametrize("text", [False, True])
def test_the_denoisers_operations_are_those_the_compiler_counts(
    wide: ModelConfig, with_text: ModelConfig, text: bool
) -> None:
    config = with_text if text else wide
    found = denoiser_flops(config, SETS, EXPRESSIONS, REFERENCES, TEXT if text else None).total
    assert found == pytest.approx(counted(config), rel=0.01)
    if not text:
        assert training_flops(Flops(found, 0.0)) == pytest.approx(counted(config, gradient=True), rel=0.01)


def test_images_that_are_seen_add_attention_only(wide: ModelConfig) -> None:
    alone, seen = (forward_flops(wide.mmdit, 4, 8, 2, others=others) for others in (0, 10))
    assert seen.products == alone.products
    assert seen.attention - alone.attention == 4 * 4 * (16 + 2) * 10 * wide.mmdit.width * wide.mmdit.num_layers


def test_what_stays_fixed_has_no_gradient_of_its_own_and_what_is_forgotten_is_computed_again() -> None:
    forward = Flops(10.0, 1.0)
    assert training_flops(forward) == 33.0
    assert training_flops(forward, trained=0.0) == 23.0
    assert training_flops(forward, remat="named") == 33.0
    assert training_flops(forward, remat="dots") == 34.0
    assert training_flops(forward, remat="full") == 44.0


def test_text_tokens_are_asked_for_where_there_is_a_text_stream(wide: ModelConfig, with_text: ModelConfig) -> None:
    with pytest.raises(ValueError, match="register tokens"):
        denoiser_flops(wide, 1, 1, text=5)
    with pytest.raises(ValueError, match="text=None"):
        denoiser_flops(with_text, 1, 1)
