"""Settings of sampling: steps, guidance, seeds, consistency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from genaffect_jax.config.as_json import ADDED_LATER
from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.errors import ConfigError, require

LARGEST_SEED = 2**64 - 1
LARGEST_STEPS = 10_000
Solver = Literal["euler", "heun", "dpm++"]
GuidanceMode = Literal["none", "joint", "expression", "decoupled"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of one set, saved with it in `set.json`."""

    steps: int = 24
    """Denoising steps, at least 1."""
    solver: Solver = "euler"
    """`euler`: first order; `heun`: second order with two evaluations per step; `dpm++`: second order with one
    (DPM-Solver++ 2M)."""
    shift: float | None = None
    """Resolution shift of the noise schedule, above 0. Default: as in training."""
    seed: int = 0
    """Seed of the noise and of the choice of shared tokens, 0 to 2^64 - 1."""
    set_seed_noise: Literal["per-item", "shared"] = "per-item"
    """`per-item`: every expression has its own noise; `shared`: all images of the set start from the same noise."""
    guidance: float | None = None
    """Joint guidance scale for person and expression, at least 0; replaces the two below. 1 is no guidance."""
    guidance_identity: float = 1.0
    """Guidance scale for the person, at least 0; 1 is the model as trained, larger values exaggerate."""
    guidance_expression: float = 1.5
    """Guidance scale for the expression, at least 0; 1 is the model as trained, larger values exaggerate."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level, in [0, 1], of guidance; outside, only the conditional branch is computed."""
    identity_scale: tuple[float, ...] = (1.0,)
    """Weight of the identity branch, one number or one per layer, at least 0; 1 is as trained, 0 switches it off."""
    expression_scale: tuple[float, ...] = (1.0,)
    """Weight of the expression branch, one number or one per layer, at least 0; 1 is as trained, 0 switches it off."""
    identity_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level, in [0, 1], of identity_scale; outside, the weight is 1."""
    expression_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level, in [0, 1], of expression_scale; outside, the weight is 1."""
    consistency: float = 0.0
    """Share of each anchor's image tokens that all images of the set attend to, 0 (independent images) to 1.
    Measurements: docs/notes/consistency.md."""
    anchors: int | None = None
    """Number of anchors, the first images of the set, which all images attend to. Default: 8, or all of a smaller
    set."""
    consistency_layers: tuple[int, ...] = ()
    """Layers, from 0, with consistent attention; empty for all."""
    consistency_start: int = 0
    """First step, from 0, with consistent attention."""
    consistency_end: int | None = None
    """First step without it again. Default: none."""
    shared_mask: Path | None = None
    """Image file whose bright parts (a face, the foreground) mark the tokens that may be shared. Default: all may."""
    block_cache_interval: int = field(default=1, metadata=ADDED_LATER)
    """Consecutive evaluations that share one computation of the middle blocks, at least 1; 1 is exact, larger values
    are faster approximations (docs/notes/consistency.md)."""
    chunk: int = 8
    """Images sampled at once on each device, beside the anchors; fewer need less memory."""
    kv_cache: Literal["auto", "always", "never"] = "auto"
    """Cache the anchors' keys and values for all chunks instead of computing the anchors beside each; `auto` does so
    if they fit into memory. The images are the same."""

    def __post_init__(self) -> None:
        limits = {"seed": LARGEST_SEED, "steps": LARGEST_STEPS}
        require_usable_numbers(self, largest=LARGEST_SIZE, limits=limits)
        for name, low in (
            ("steps", 1),
            ("consistency_start", 0),
            ("block_cache_interval", 1),
            ("chunk", 1),
        ):
            require(getattr(self, name) >= low, name, getattr(self, name), f"must be at least {low}")
        require(0 <= self.seed <= LARGEST_SEED, "seed", self.seed, f"must be 0 to {LARGEST_SEED}")
        for name in ("guidance", "guidance_identity", "guidance_expression"):
            value = getattr(self, name)
            require(value is None or (value >= 0 and math.isfinite(value)), name, value, "must be at least 0")
        require(self.shift is None or 0 < self.shift < math.inf, "shift", self.shift, "must be above 0")
        for name in ("identity_scale", "expression_scale"):
            given = getattr(self, name)
            object.__setattr__(self, name, tuple(float(x) for x in (given if isinstance(given, Sequence) else [given])))
            require(
                all(math.isfinite(x) and x >= 0 for x in getattr(self, name)),
                name,
                given,
                "must be finite and at least 0",
            )
        for name in ("guidance_interval", "identity_interval", "expression_interval"):
            given = getattr(self, name)
            require(
                len(given) == 2 and 0.0 <= given[0] <= given[1] <= 1.0,
                name,
                given,
                "must be two noise levels, 0 <= low <= high <= 1",
            )
        require(0.0 <= self.consistency <= 1.0, "consistency", self.consistency, "must lie in [0, 1]")
        require(self.anchors is None or self.anchors >= 1, "anchors", self.anchors, "must be at least 1")
        end = self.consistency_end
        require(
            end is None or end > self.consistency_start,
            "consistency_end",
            end,
            f"must be above consistency_start {self.consistency_start}",
        )

    @property
    def mode(self) -> GuidanceMode:
        """Which guidance branches are computed."""
        if self.guidance is not None:
            return "none" if self.guidance == 1.0 else "joint"
        if self.guidance_identity != 1.0:
            return "decoupled"
        # The branch without any condition would have weight 0.
        return "none" if self.guidance_expression == 1.0 else "expression"


@dataclass(frozen=True)
class SamplingDefaults:
    """Settings that a model is sampled with where nothing else is asked for: those it was measured or trained for."""

    steps: int = 24
    """See `SamplingConfig.steps`."""
    solver: Solver = "euler"
    """See `SamplingConfig.solver`."""
    guidance_identity: float = 1.0
    """See `SamplingConfig.guidance_identity`."""
    guidance_expression: float = 1.5
    """See `SamplingConfig.guidance_expression`."""
    consistency: float = 0.0
    """See `SamplingConfig.consistency`."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "sampling.", LARGEST_SIZE)
        try:
            self.settings()
        except ConfigError as e:
            raise e.renamed(f"sampling.{e.field}") from e

    def settings(self) -> SamplingConfig:
        """The settings of a set; all others have their usual values."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields(self)})
