"""From noise to latents: the Euler sampler. It knows no network, only a velocity function."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Folded into the seed first, so that noise shares no key with what else is drawn from the seed.
NOISE_PURPOSE = 0x6E6F6973


def item_noise(
    seed: int | Int[Array, ""], items: Int[Array, "*batch"], shape: tuple[int, ...]
) -> Float[Array, "*batch *shape"]:
    """Standard normal noise of each item, from a key folded from (seed, item).

    It depends on the item's number and never on its place in a batch, the batch's size or the devices.

    Args:
        seed: the run's seed.
        items: number of each picture, non-negative.
        shape: shape of one picture's noise.
    """
    base = jax.random.fold_in(jax.random.key(seed), NOISE_PURPOSE)

    def noise(item: Int[Array, ""]) -> Float[Array, "*shape"]:
        return jax.random.normal(jax.random.fold_in(base, item), shape)

    flat = jax.vmap(noise)(jnp.ravel(items))
    return flat.reshape(*jnp.shape(items), *shape)


def euler_sample(
    velocity: Callable[[Float[Array, "*batch h w c"], Float[Array, ""]], Float[Array, "*batch h w c"]],
    noise: Float[Array, "*batch h w c"],
    sigmas: Float[Array, " steps+1"],
) -> Float[Array, "*batch h w c"]:
    """Follows the velocity from noise to clean latents: `x += (sigma_next - sigma) v(x, sigma)` for every step.

    Args:
        velocity: `velocity(latents, sigma)`; whatever it needs beside them it closes over.
        noise: where to start, at `sigmas[0]`.
        sigmas: falling noise levels; the last is where to stop.

    Returns:
        The latents at the last noise level, float32.
    """
    sigmas = jnp.asarray(sigmas, jnp.float32)

    def step(latents: Array, levels: tuple[Array, Array]) -> tuple[Array, None]:
        sigma, following = levels
        return latents + (following - sigma) * velocity(latents, sigma).astype(jnp.float32), None

    latents, _ = jax.lax.scan(step, noise.astype(jnp.float32), (sigmas[:-1], sigmas[1:]))
    return latents
