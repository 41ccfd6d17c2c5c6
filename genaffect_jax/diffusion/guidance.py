"""Classifier-free guidance, joint or decoupled for identity and expression.

The branches of an image (without conditions, with some, with all) are extra groups of one batch: group g becomes
the groups `g * n ... g * n + n - 1`, so that a batch cut over devices stays where it is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from genaffect_jax.config import GuidanceMode
from genaffect_jax.diffusion.sampler import Carry, Velocity

# (identity dropped, expression dropped) of each branch.
GUIDANCE_BRANCHES: dict[str, tuple[tuple[bool, bool], ...]] = {
    "none": ((False, False),),
    "joint": ((True, True), (False, False)),
    "expression": ((False, True), (False, False)),
    "decoupled": ((True, True), (False, True), (False, False)),
}


def branch_drops(mode: GuidanceMode, groups: int, expressions: int) -> tuple[Bool[Array, " n*G"], Bool[Array, "n*G E"]]:
    """What each branch's conditions drop: identity per group, expression per image.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in GUIDANCE_BRANCHES:
        raise ValueError(f"guidance {mode!r}: must be one of {', '.join(GUIDANCE_BRANCHES)}")
    identity, expression = jnp.array(GUIDANCE_BRANCHES[mode]).T
    drop_expression = jnp.tile(expression, groups)[:, None]
    return jnp.tile(identity, groups), jnp.broadcast_to(drop_expression, (len(drop_expression), expressions))


def repeat_branches(x: Float[Array, "G ..."], mode: GuidanceMode) -> Float[Array, "n*G ..."]:
    """Every group once per branch, branches of a group side by side."""
    return jnp.repeat(x, len(GUIDANCE_BRANCHES[mode]), axis=0)


def combine(
    velocity: Float[Array, "n*G ..."],
    mode: GuidanceMode,
    guidance_identity: Float[Array, ""] | float = 1.0,
    guidance_expression: Float[Array, ""] | float = 1.0,
) -> Float[Array, "G ..."]:
    """The guided velocity from those of the branches.

    `decoupled`: `v0 + g_id (v_id - v0) + g_ex (v_id,ex - v_id)`. `expression` is that with a `g_id` of 1, where v0 has
    no weight: `v_id + g_ex (v_id,ex - v_id)`. `joint`: `v0 + g_ex (v_id,ex - v0)`; a joint scale is given as
    `guidance_expression`. In the last two `guidance_identity` has no part.
    """
    branches = velocity.reshape(-1, len(GUIDANCE_BRANCHES[mode]), *velocity.shape[1:])
    if mode == "none":
        return branches[:, 0]
    if mode in ("joint", "expression"):
        base, full = branches[:, 0], branches[:, 1]
        return base + guidance_expression * (full - base)
    base, identity, full = branches[:, 0], branches[:, 1], branches[:, 2]
    return base + guidance_identity * (identity - base) + guidance_expression * (full - identity)


def guided(
    velocity: Velocity,
    mode: GuidanceMode,
    guidance_identity: Float[Array, ""] | float = 1.0,
    guidance_expression: Float[Array, ""] | float = 1.0,
    interval: tuple[Float[Array, ""] | float, Float[Array, ""] | float] | None = None,
    velocity_full: Velocity | None = None,
) -> Velocity:
    """The velocity function of a guided model.

    Args:
        velocity: takes the branches as groups; its conditions are those of `branch_drops`.
        mode: which branches there are.
        guidance_identity, guidance_expression: see `combine`; may be traced.
        interval: lowest and highest noise level, both included, at which guidance acts (Kynkaanniemi et al. 2024,
            arXiv 2404.07724); may be traced. Elsewhere the image follows the branch that has all conditions, and
            only that branch is evaluated. None: everywhere, and the program has no second network in it.
        velocity_full: the velocity of that branch alone, for latents [G, E, h, w, c]; its conditions are those of the
            last branch of every group. Needed with an interval. It is given the carry that `velocity` is given, and
            returns it in the same structure, shapes and dtypes: it must leave in a usable state what belongs to other
            branches. If both write to it, XLA for the CPU keeps one more copy of the carry; if one hands it on
            unchanged, none.

    Returns:
        A velocity function of latents [G, E, h, w, c], for `sampler.sample`. Its velocity is float32.

    Raises:
        ValueError: an unknown mode, or an interval without `velocity_full`.
    """
    if mode not in GUIDANCE_BRANCHES:
        raise ValueError(f"guidance {mode!r}: must be one of {', '.join(GUIDANCE_BRANCHES)}")
    # A single branch is the full one: there is nothing to leave out.
    limits = None if mode == "none" else interval
    if limits is not None and velocity_full is None:
        raise ValueError("guidance interval: needs velocity_full, the velocity of the branch with all conditions")

    def guided_velocity(
        latents: Float[Array, "G E h w c"], sigma: Float[Array, ""], evaluation: Int32[Array, ""], carry: Carry
    ) -> tuple[Float[Array, "G E h w c"], Carry]:
        def all_branches(latents: Float[Array, "G E h w c"], carry: Carry) -> tuple[Any, Carry]:
            found, carry = velocity(repeat_branches(latents, mode), sigma, evaluation, carry)
            return combine(found.astype(jnp.float32), mode, guidance_identity, guidance_expression), carry

        if limits is None or velocity_full is None:
            return all_branches(latents, carry)

        def one_branch(latents: Float[Array, "G E h w c"], carry: Carry) -> tuple[Any, Carry]:
            found, carry = velocity_full(latents, sigma, evaluation, carry)
            return found.astype(jnp.float32), carry

        inside = (sigma >= limits[0]) & (sigma <= limits[1])
        return jax.lax.cond(inside, all_branches, one_branch, latents, carry)

    return guided_velocity
