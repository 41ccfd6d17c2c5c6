"""The networks of one model, built from its configuration."""

from __future__ import annotations

import functools

from genaffect_jax.config import DType, ModelConfig
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.genaffect import GenAffect
from genaffect_jax.models.lora import LoraNetwork


@functools.lru_cache(maxsize=8)  # a network's shapes take about a second to find
def build_networks(
    config: ModelConfig, dtype: DType = "float32", max_free: bool = False
) -> tuple[Functional[GenAffect], Functional[AutoencoderKL]]:
    """The denoiser and the autoencoder of a model, without parameters.

    Args:
        config: sizes, and the low-rank additions of the denoiser if there are any.
        dtype: type of activations.
        max_free: see `MMDiT`. For sampling only, with parameters whose `models.mmdit.score_bound.score_bound` is at
            most `LARGEST_SCORE`.

    Raises:
        ConfigError: `config.lora` does not fit the denoiser (see `models.lora.LoraNetwork`).
    """
    denoiser = Functional(lambda rngs: GenAffect(config, rngs=rngs, dtype=dtype, max_free=max_free))
    return (
        LoraNetwork(denoiser, config.lora) if config.lora.rank else denoiser,
        Functional(lambda rngs: AutoencoderKL(config.autoencoder, rngs=rngs, dtype=dtype)),
    )
