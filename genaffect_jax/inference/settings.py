"""From the settings of a set to what the program takes: what it is compiled for, and its arguments."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from genaffect_jax.config import ModelConfig, SamplingConfig
from genaffect_jax.diffusion.schedule import euler_sigmas, padded_sigmas
from genaffect_jax.errors import ConfigError, DataError
from genaffect_jax.inference.program import SamplerParams, SamplerSpec
from genaffect_jax.io.images import read_image
from genaffect_jax.models.genaffect import BranchScales
from genaffect_jax.models.mmdit.block_cache import FEWEST_BLOCKS


def resolve_settings(
    model: ModelConfig, trained_shift: float, settings: SamplingConfig
) -> tuple[SamplerSpec, SamplerParams]:
    """What the settings mean for a model.

    Args:
        model: sizes.
        trained_shift: resolution shift of the noise schedule that it was trained with.
        settings: how to draw.

    Raises:
        ConfigError: scales or layers that the model does not have, a start of sharing after the last step, a mask
            without bright parts.
    """
    network = model.mmdit
    layers, side = network.num_layers, network.sample_size // network.patch_size
    scales = BranchScales.of(
        layers,
        settings.identity_scale,
        settings.expression_scale,
        settings.identity_interval,
        settings.expression_interval,
    )
    shift = settings.shift or trained_shift
    sigmas = euler_sigmas(settings.steps, shift)
    start, end, unknown = (
        settings.consistency_start,
        settings.consistency_end,
        [n for n in settings.consistency_layers if not 0 <= n < layers],
    )
    if unknown:
        raise ConfigError(f"--consistency_layers {unknown}: the model has layers 0 to {layers - 1}")
    if start >= settings.steps:
        raise ConfigError(f"--consistency_start {start}: must be below --steps {settings.steps}")
    if settings.block_cache_interval > 1 and settings.guidance_interval != (0.0, 1.0):
        raise ConfigError(
            "--block_cache_interval: not together with --guidance_interval, whose steps differ in branches"
        )
    if settings.block_cache_interval > 1 and layers < FEWEST_BLOCKS:
        raise ConfigError(f"--block_cache_interval: the model has {layers} blocks, needs at least {FEWEST_BLOCKS}")
    candidates = None if settings.shared_mask is None else _mask(settings.shared_mask, side)
    shared = round(settings.consistency * (side * side if candidates is None else int(candidates.sum())))
    joint = settings.guidance is not None
    spec = SamplerSpec(
        mode=settings.mode,
        solver=settings.solver,
        shared=shared,
        guidance_limited=settings.guidance_interval != (0.0, 1.0),
        sharing_limited=bool(settings.consistency_layers or start or end is not None),
        uses_block_cache=settings.block_cache_interval > 1,
    )
    among = np.isin(np.arange(layers), settings.consistency_layers or np.arange(layers))
    params = SamplerParams(
        seed=jnp.int32(settings.seed),
        sigmas=jnp.asarray(padded_sigmas(settings.steps, shift)),
        steps=jnp.int32(settings.steps),
        guidance_identity=jnp.float32(settings.guidance_identity),
        guidance_expression=jnp.float32(settings.guidance if joint else settings.guidance_expression),
        guidance_interval=jnp.asarray(settings.guidance_interval, jnp.float32),
        scales=scales,
        sharing_layers=jnp.asarray(among),
        sharing_interval=jnp.asarray([sigmas[min(end or settings.steps, settings.steps)], sigmas[start]]),
        block_cache_interval=jnp.int32(settings.block_cache_interval),
        candidates=None if candidates is None else jnp.asarray(candidates),
    )
    return spec, params


def _mask(file: Path, side: int) -> Bool[np.ndarray, " L"]:
    """Tokens that are at least half bright in an image.

    Raises:
        ConfigError: there are none, or the file is no image.
    """
    try:
        grey = read_image(file, side).mean(-1)  # a pixel is the mean of its token's place
    except DataError as e:
        raise ConfigError(f"--shared_mask {file}: {e}") from e
    bright = (grey >= 127.5).ravel()
    if not bright.any():
        raise ConfigError(f"--shared_mask {file}: no part is bright, so no token may be shared")
    return bright
