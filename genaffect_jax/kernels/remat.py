"""Rematerialisation: what the backward pass keeps of a layer, and what it computes again.

Chen et al. 2016, arXiv 1604.06174. Values that are dear to compute again have names, by which policies keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

Remat = Literal["none", "named", "dots", "full"]
# Names of kept values: products with weights, and inputs and results of attention kernels.
PRODUCT, ATTENTION = "product", "attention"


def keep_product(x: Array) -> Array:
    """`x`, named as the result of a product with weights."""
    return checkpoint_name(x, PRODUCT)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    # JAX's own gradient rule of this operation does not name its results.
    return primitive.name == "dot_product_attention_fwd_wrapper"


POLICIES: dict[Remat, Callable[..., Any]] = {
    # Norms, modulations and activations cost little to compute again. In float32 they would take most of the memory.
    "named": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION), _is_cudnn_attention
    ),
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
