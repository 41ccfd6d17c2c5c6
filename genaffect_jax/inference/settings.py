"""From the settings of a set to the two arguments of the program that depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from genaffect_jax.config import ModelConfig, SamplingConfig
from genaffect_jax.diffusion.schedule import euler_sigmas, padded_sigmas
from genaffect_jax.diffusion.seeds import seed_words
from genaffect_jax.errors import ConfigError, DataError, require
from genaffect_jax.inference.program import SamplerParams, SamplerSpec
from genaffect_jax.io.images import read_image
from genaffect_jax.models.genaffect import BranchScales
from genaffect_jax.models.mmdit.block_cache import FEWEST_BLOCKS


def resolve_settings(
    model: ModelConfig, trained_shift: float, settings: SamplingConfig
) -> tuple[SamplerSpec, SamplerParams]:
    """The settings of a set as static and traced arguments of the program.

    Args:
        model: sizes.
        trained_shift: resolution shift of the noise schedule in training.
        settings: the settings.

    Raises:
        ConfigError: scales, layers or a branch that the model does not have, sharing that starts after the last step, a
            mask without bright parts, or a block cache that the model or the guidance does not allow.
    """
    network = model.mmdit
    _check(network.num_layers, settings)
    alone = model.conditioning.attention != "text" or set(settings.expression_scale) == {1.0}
    require(alone, "expression_scale", settings.expression_scale, "must be 1: this model has no expression branch")
    scales = BranchScales.of(
        network.num_layers,
        settings.identity_scale,
        settings.expression_scale,
        settings.identity_interval,
        settings.expression_interval,
    )
    shift = settings.shift or trained_shift
    sigmas = euler_sigmas(settings.steps, shift)
    start, end = settings.consistency_start, settings.consistency_end
    candidates = None if settings.shared_mask is None else _mask(settings.shared_mask, network.tokens_per_side)
    shareable = network.image_tokens if candidates is None else int(candidates.sum())
    joint = settings.guidance is not None
    spec = SamplerSpec(
        mode=settings.mode,
        solver=settings.solver,
        shared=round(settings.consistency * shareable),
        guidance_limited=settings.guidance_interval != (0.0, 1.0),
        sharing_limited=bool(settings.consistency_layers or start or end is not None),
        uses_block_cache=settings.block_cache_interval > 1,
    )
    layers = np.arange(network.num_layers)
    values: dict[str, Any] = {
        "seed": seed_words(settings.seed),
        "sigmas": padded_sigmas(settings.steps, shift),
        "steps": np.int32(settings.steps),
        "guidance_identity": np.float32(settings.guidance_identity),
        "guidance_expression": np.float32(settings.guidance if joint else settings.guidance_expression),
        "guidance_interval": np.asarray(settings.guidance_interval, np.float32),
        "scales": scales,
        "sharing_layers": np.isin(layers, settings.consistency_layers or layers),
        "sharing_interval": np.array([sigmas[min(end or settings.steps, settings.steps)], sigmas[start]], np.float32),
        "block_cache_interval": np.int32(settings.block_cache_interval),
        "candidates": candidates,
    }
    # NumPy's until here: every small array that JAX makes runs a program of its own.
    params = jax.device_put(SamplerParams(**values))
    return spec, params


def _check(layers: int, settings: SamplingConfig) -> None:
    unknown = [n for n in settings.consistency_layers if not 0 <= n < layers]
    require(not unknown, "consistency_layers", unknown, f"the model has layers 0 to {layers - 1}")
    require(
        settings.consistency_start < settings.steps,
        "consistency_start",
        settings.consistency_start,
        f"must be below steps, {settings.steps}",
    )
    if settings.block_cache_interval > 1:
        require(
            settings.guidance_interval == (0.0, 1.0),
            "block_cache_interval",
            settings.block_cache_interval,
            "cannot be combined with guidance_interval, whose steps differ in branches",
        )
        require(
            layers >= FEWEST_BLOCKS,
            "block_cache_interval",
            settings.block_cache_interval,
            f"the model has {layers} blocks, a block cache needs at least {FEWEST_BLOCKS}",
        )


def _mask(file: Path, side: int) -> Bool[np.ndarray, " L"]:
    """The image tokens that are at least half bright in an image file.

    Raises:
        ConfigError: no token is bright, or the file cannot be read as an image.
    """
    try:
        grey = read_image(file, side).mean(-1)  # one pixel for each token
    except DataError as e:
        raise ConfigError(str(e), field="shared_mask", found=file) from e
    bright = (grey >= 127.5).ravel()
    require(bool(bright.any()), "shared_mask", file, "no part is bright, so no token may be shared")
    return bright
