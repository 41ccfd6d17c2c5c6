"""Prompt embeddings on the devices: an argument of jitted programs, which read it by row."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from genaffect_jax.data.prompts.table import PromptTable


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """Embeddings of P prompts, in the type they are stored in; a pytree."""

    tokens: Float[Array, "P T C"]
    """Text tokens."""
    pooled: Float[Array, "P D"]
    """Pooled embeddings."""
    negative: Int[Array, ""]
    """Row of the negative prompt, which stands for no text."""

    @classmethod
    def of(cls, table: PromptTable, negative: str) -> Prompts:
        """The table as JAX arrays, on the default device.

        Raises:
            DataError: the table has no embeddings of `negative`.
        """
        row = table.rows([negative])[0]
        return cls(jnp.asarray(table.tokens), jnp.asarray(table.pooled), jnp.asarray(row))

    def lookup(
        self, rows: Int[Array, "G E"], drop: Bool[Array, "G E"] | None = None
    ) -> tuple[Float[Array, "G E T C"], Float[Array, "G E D"]]:
        """Tokens and pooled embedding of each image's prompt, or of the negative prompt where `drop` is True."""
        if drop is not None:
            rows = jnp.where(drop, self.negative, rows)
        return self.tokens[rows], self.pooled[rows]
