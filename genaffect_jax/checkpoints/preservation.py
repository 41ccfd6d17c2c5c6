"""The preservation policy of checkpoints: the newest stay, and those with the lowest values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbax.checkpoint.checkpoint_managers import LatestN, PolicyCheckpointInfo, PreservationContext


@dataclass(frozen=True)
class LatestAndBest:
    """Keeps the newest checkpoints and the best; a preservation policy of orbax.

    Values are looked up by step. Orbax's own `BestN` reads them from a file of each checkpoint when a manager is made,
    so that one damaged file would hide all checkpoints.
    """

    latest: int
    """Number of newest checkpoints that stay, at least 1."""
    best: int
    """Number of checkpoints with the lowest values that stay; of equal values the newer checkpoint counts first."""
    value: Callable[[int], float | None]
    """The value of a step; a step without a value never counts as best."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Whether each checkpoint stays, in the order of `checkpoints`, which is that of their steps."""
        newest = LatestN(self.latest).should_preserve(checkpoints, context=context)
        values = {info.step: value for info in checkpoints if (value := self.value(info.step)) is not None}
        best = sorted(values, key=lambda step: (values[step], -step))[: self.best]
        return [new or info.step in best for new, info in zip(newest, checkpoints, strict=True)]
