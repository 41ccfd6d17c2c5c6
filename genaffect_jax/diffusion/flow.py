"""Rectified flow: noise levels for training, noisy latents, the velocity target, the loss.

Straight paths from data to noise (Liu et al. 2022, arXiv 2209.03003) with the noise levels of SD3 (arXiv 2403.03206,
section 3.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from genaffect_jax.config import FlowConfig
from genaffect_jax.diffusion.schedule import shift_sigma

# Levels that are not logit-normal stay so far from 0 and 1: a level of exactly 0 has nothing to learn.
MARGIN = 1e-4


def sample_sigma(key: Key[Array, ""], shape: tuple[int, ...], flow: FlowConfig) -> Float[Array, "*shape"]:
    """Noise levels in (0, 1), of the distribution `flow.timesteps`, then shifted."""
    if flow.timesteps == "logit_normal":
        logit = flow.logit_mean + flow.logit_std * jax.random.normal(key, shape)
        return shift_sigma(jax.nn.sigmoid(logit), flow.shift)
    return sigma_quantile(jax.random.uniform(key, shape), flow)


def sigma_quantile(rank: Float[Array, "*shape"], flow: FlowConfig) -> Float[Array, "*shape"]:
    """The noise level that a share `rank`, in (0, 1), of those that `sample_sigma` draws lies below.

    `mode` is `1 - u - s (cos^2(pi u / 2) - 1 + u)` of an evenly drawn u (arXiv 2403.03206, equation 20), which falls
    from 1 to 0.
    """
    if flow.timesteps == "logit_normal":
        level = jax.nn.sigmoid(flow.logit_mean + flow.logit_std * jax.scipy.special.ndtri(rank))
        return shift_sigma(level, flow.shift)
    level = rank
    if flow.timesteps == "mode":
        u = 1.0 - rank
        level = 1.0 - u - flow.mode_scale * (jnp.square(jnp.cos(0.5 * jnp.pi * u)) - 1.0 + u)
    return shift_sigma(jnp.clip(level, MARGIN, 1.0 - MARGIN), flow.shift)


def sample_drops(
    key: Key[Array, ""], groups: int, expressions: int, flow: FlowConfig
) -> tuple[Bool[Array, " G"], Bool[Array, "G E"], Bool[Array, "G E"]]:
    """Which groups lose their identity, and which images their expression and their text.

    Independently at `flow.drop_identity`, `drop_expression` and `drop_text`; beside that whole groups lose all three,
    with probability `flow.drop_all`.
    """
    identity, expression, text, everything = jax.random.split(key, 4)
    lost = jax.random.bernoulli(everything, flow.drop_all, (groups,))
    return (
        lost | jax.random.bernoulli(identity, flow.drop_identity, (groups,)),
        lost[:, None] | jax.random.bernoulli(expression, flow.drop_expression, (groups, expressions)),
        lost[:, None] | jax.random.bernoulli(text, flow.drop_text, (groups, expressions)),
    )


def _per_item(sigma: Float[Array, "*batch"], like: Float[Array, "*batch h w c"]) -> Float[Array, "*batch 1 1 1"]:
    return sigma.reshape(*sigma.shape, *(1,) * (like.ndim - sigma.ndim))


def interpolate(
    clean: Float[Array, "*batch h w c"], noise: Float[Array, "*batch h w c"], sigma: Float[Array, "*batch"]
) -> Float[Array, "*batch h w c"]:
    """Noisy latents `(1 - sigma) clean + sigma noise`."""
    weight = _per_item(sigma, clean)
    return (1.0 - weight) * clean + weight * noise


def velocity_target(
    clean: Float[Array, "*batch h w c"], noise: Float[Array, "*batch h w c"]
) -> Float[Array, "*batch h w c"]:
    """The velocity of the straight path, `noise - clean`: the derivative of `interpolate` by sigma."""
    return noise - clean


def predicted_x0(
    noisy: Float[Array, "*batch h w c"], velocity: Float[Array, "*batch h w c"], sigma: Float[Array, "*batch"]
) -> Float[Array, "*batch h w c"]:
    """The clean latents that a velocity points at, `noisy - sigma velocity`."""
    return noisy - _per_item(sigma, noisy) * velocity


def flow_loss(
    velocity: Float[Array, "*batch h w c"],
    target: Float[Array, "*batch h w c"],
    weight: Shaped[Array, "*batch ..."] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Squared error as (sum, count), both float32; their ratio is the weighted mean over the latent numbers.

    Args:
        velocity, target: predicted and true velocity.
        weight: how much each item [*batch], or each latent number [*batch, h, w, c or 1], counts; a mask will do.
            None counts all alike.
    """
    error = jnp.square(velocity.astype(jnp.float32) - target.astype(jnp.float32))
    counts = jnp.ones_like(error) if weight is None else jnp.broadcast_to(_per_item(weight, error), error.shape)
    return jnp.sum(error * counts), jnp.sum(counts.astype(jnp.float32))


def change_weight(
    target: Float[Array, "G E h w c"], reference: Float[Array, "G h w c"], strength: float
) -> Float[Array, "G E h w 1"]:
    """Loss weight of each latent pixel: `1 + strength * d / mean(d)`, where d is how far target and reference differ.

    Most of an image is the reference again; what the expression moves is a few latent pixels at mouth, eyes and
    brows. The weight lets short trainings learn those too. d is the mean absolute difference over channels, its mean
    is over one image.
    """
    difference = jnp.abs(target - reference[:, None]).mean(-1, keepdims=True)
    return 1.0 + strength * difference / (difference.mean((2, 3, 4), keepdims=True) + 1e-6)
