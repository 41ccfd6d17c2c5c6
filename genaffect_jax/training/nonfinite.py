"""A guard against non-finite losses and gradients: such a step is skipped, and many consecutive ones end the run.

The devices decide for each step (`training.step`), so that no step waits for the host. The host counts skipped steps
whenever it logs.
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
    """Whether a step may change the state. The norm is finite only if every gradient is."""
    return jnp.isfinite(loss) & jnp.isfinite(gradient_norm)


def keep_if(finite: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` if `finite`, else `old`: two trees of arrays of the same structure."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


class NonFiniteGuard:
    """Counts consecutive skipped steps.

    Args:
        limit: number of consecutive skipped steps that ends the training.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._consecutive = limit, 0

    def check(self, rows: Sequence[Mapping[str, np.ndarray]], last_step: int) -> None:
        """Counts on with the metrics of the steps up to `last_step`, in order.

        Raises:
            TrainingError: too many consecutive steps were skipped.
        """
        for step, row in enumerate(rows, last_step - len(rows) + 1):
            self._consecutive = self._consecutive + 1 if row[SKIPPED] else 0
            if self._consecutive >= self._limit:
                raise TrainingError(
                    f"step {step}: loss {float(row['loss'])}, gradient norm {float(row[NORM])}, for "
                    f"{self._consecutive} consecutive steps; all were skipped. {_advice(row)} The checkpoints are as "
                    "they were"
                )


def _advice(row: Mapping[str, np.ndarray]) -> str:
    if np.isfinite(row["loss"]):
        return "Only gradients overflow: lower train.learning_rate, or train with compute_dtype float32."
    return "Lower train.learning_rate, or look for damaged images or weights."
