"""A guard against numbers that are not finite: such a step changes nothing, is counted, and many in a row end the run.

The device decides for each step (`training.step`), so that no step waits for the host; the host looks when it logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from genaffect_jax.errors import TrainingError

Tree = TypeVar("Tree")

# Names of the step's metrics.
SKIPPED, NORM = "skipped", "gradient_norm"


def all_finite(loss: Float[Array, ""], gradient_norm: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a step may change anything: the norm is finite only if every gradient is."""
    return jnp.isfinite(loss) & jnp.isfinite(gradient_norm)


def keep_if(finite: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` or `old`, trees of arrays of one structure."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


class NonFiniteGuard:
    """Counts skipped steps over the rows of metrics that it is shown.

    Args:
        most: so many skipped steps in a row end the training.
    """

    def __init__(self, most: int) -> None:
        self._most, self._in_a_row = most, 0

    def check(self, rows: Sequence[Mapping[str, np.ndarray]], last_step: int) -> None:
        """Looks at the metrics of the steps up to `last_step`, in order.

        Raises:
            TrainingError: too many steps in a row were skipped.
        """
        for step, row in enumerate(rows, last_step - len(rows) + 1):
            self._in_a_row = self._in_a_row + 1 if row[SKIPPED] else 0
            if self._in_a_row >= self._most:
                raise TrainingError(
                    f"step {step}: loss {float(row['loss'])}, gradient norm {float(row[NORM])}, for "
                    f"{self._in_a_row} steps in a row; they changed nothing. {_advice(row)} The checkpoints are as "
                    "they were"
                )


def _advice(row: Mapping[str, np.ndarray]) -> str:
    if np.isfinite(row["loss"]):  # the forward pass is sound
        return "Only gradients overflow: lower train.learning_rate, or train with compute_dtype float32."
    return "Lower train.learning_rate, or look for images or weights that are damaged."
