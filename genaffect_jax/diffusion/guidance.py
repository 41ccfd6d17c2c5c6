"""Classifier-free guidance, joint or decoupled for identity and expression.

The branches of a picture (without conditions, with some, with all) are extra groups of one batch: group g becomes
the groups `g * n ... g * n + n - 1`, so that a batch cut over devices stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

GuidanceMode = Literal["none", "joint", "decoupled"]
Velocity = Callable[[Float[Array, "G E h w c"], Float[Array, ""]], Float[Array, "G E h w c"]]

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
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """The velocity function of a guided model.

    Args:
        velocity: takes the branches as groups; its conditions are those of `branch_drops`.
        mode: which branches there are.
        guidance_identity, guidance_expression: see `combine`; traced values.
        interval: noise levels, both ends included, at which guidance acts; elsewhere both scales are 1
            (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """
    low, high = interval

    def guided_velocity(latents: Float[Array, "G E h w c"], sigma: Float[Array, ""]) -> Float[Array, "G E h w c"]:
        inside = (sigma >= low) & (sigma <= high)
        scales = [jnp.where(inside, scale, 1.0) for scale in (guidance_identity, guidance_expression)]
        return combine(velocity(repeat_branches(latents, mode), sigma), mode, *scales)

    return guided_velocity
