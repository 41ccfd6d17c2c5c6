"""Which checkpoints stay: the newest, and beside them those with the lowest values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orbax.checkpoint.checkpoint_managers import LatestN, PolicyCheckpointInfo, PreservationContext


@dataclass(frozen=True)
class LatestAndBest:
    """A preservation policy of orbax.

    Values are asked for by step: orbax's own `BestN` reads them from a file of each checkpoint when a manager is made,
    and one damaged file would then hide all checkpoints.
    """

    latest: int
    """Newest checkpoints that stay, at least 1."""
    best: int
    """Checkpoints with the lowest values that stay; of equal ones the newer."""
    value: Callable[[int], float | None]
    """The value of a step; one without never counts as best."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Whether each checkpoint stays; they come in the order of their steps."""
        newest = LatestN(self.latest).should_preserve(checkpoints, context=context)
        values = {info.step: value for info in checkpoints if (value := self.value(info.step)) is not None}
        best = sorted(values, key=lambda step: (values[step], -step))[: self.best]
        return [new or info.step in best for new, info in zip(newest, checkpoints, strict=True)]
