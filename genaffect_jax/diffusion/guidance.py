"""Classifier-free guidance, joint or decoupled for identity and expression.

The branches of a picture (without conditions, with some, with all) are extra groups of one batch: group g becomes
the groups `g * n ... g * n + n - 1`, so that a batch cut over devices stays where it is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import GuidanceMode
from genaffect_jax.diffusion.sampler import Velocity

# (identity dropped, expression dropped) of each branch.
BRANCHES: dict[str, tuple[tuple[bool, bool], ...]] = {
    "none": ((False, False),),
    "joint": ((True, True), (False, False)),
    "decoupled": ((True, True), (False, True), (False, False)),
}


def branch_drops(mode: GuidanceMode, groups: int, expressions: int) -> tuple[Bool[Array, " n*G"], Bool[Array, "n*G E"]]:
    """What each branch's conditions drop: identity per group, expression per picture.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in BRANCHES:
        raise ValueError(f"guidance {mode!r}: must be one of {', '.join(BRANCHES)}")
    identity, expression = jnp.array(BRANCHES[mode]).T
    drop_expression = jnp.tile(expression, groups)[:, None]
    return jnp.tile(identity, groups), jnp.broadcast_to(drop_expression, (len(drop_expression), expressions))


def repeat_branches(x: Float[Array, G * rest], mode: GuidanceMode) -> Float[Array, n * G * rest]:
    """Every group once per branch, branches of a group side by side."""
    return jnp.repeat(x, len(BRANCHES[mode]), axis=0)


def combine(
    velocity: Float[Array, n * G * rest],
    mode: GuidanceMode,
    guidance_identity: Float[Array, ""] | float = 1.0,
    guidance_expression: Float[Array, ""] | float = 1.0,
) -> Float[Array, G * rest]:
    """The guided velocity from those of the branches.

    `decoupled`: `v0 + g_id (v_id - v0) + g_ex (v_id,ex - v_id)`. `joint`: `v0 + g_ex (v_id,ex - v0)`; a joint scale
    is given as `guidance_expression`, and `guidance_identity` has no part in it.
    """
    branches = velocity.reshape(-1, len(BRANCHES[mode]), *velocity.shape[1:])
    if mode == "none":
        return branches[:, 0]
    if mode == "joint":
        base, full = branches[:, 0], branches[:, 1]
        return base + guidance_expression * (full - base)
    base, identity, full = branches[:, 0], branches[:, 1], branches[:, 2]
    return base + guidance_identity * (identity - base) + guidance_expression * (full - identity)


def guided(
    velocity: Velocity,
    mode: GuidanceMode,
    guidance_identity: Float[Array, ""] | float = 1.0,
    guidance_expression: Float[Array, ""] | float = 1.0,
    interval: Float[Array, " 2"] | tuple[float, float] | None = None,
    velocity_full: Velocity | None = None,
) -> Velocity:
    """The velocity function of a guided model.

    Args:
        velocity: takes the branches as groups; its conditions are those of `branch_drops`.
        mode: which branches there are.
        guidance_identity, guidance_expression: see `combine`; traced values.
        interval: noise levels, both ends included, at which guidance acts (Kynkaanniemi et al. 2024, arXiv 2404.07724);
            elsewhere only `velocity_full` is evaluated. None: it acts everywhere, without a choice in the program.
        velocity_full: the velocity with all conditions, for groups that are not repeated; needed with an interval.

    Raises:
        ValueError: an interval without `velocity_full`.
    """
    if interval is not None and velocity_full is None:
        raise ValueError("guidance in an interval needs velocity_full, the velocity outside it")

    def all_branches(latents: Array, sigma: Array, evaluation: Array, memory: Any) -> tuple[Array, Any]:
        found, memory = velocity(repeat_branches(latents, mode), sigma, evaluation, memory)
        return combine(found, mode, guidance_identity, guidance_expression), memory

    if interval is None or velocity_full is None:
        return all_branches
    low, high = interval

    def in_interval(latents: Array, sigma: Array, evaluation: Array, memory: Any) -> tuple[Array, Any]:
        inside = (sigma >= low) & (sigma <= high)
        return jax.lax.cond(inside, all_branches, velocity_full, latents, sigma, evaluation, memory)

    return in_interval
