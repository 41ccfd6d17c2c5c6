"""How a network is computed where no gradient is taken: choices of speed that leave its parameters alone."""

from __future__ import annotations

from dataclasses import dataclass

from genaffect_jax.models.quantised import Products, check_products


@dataclass(frozen=True)
class Inference:
    """Static choices; networks that train have none of them.

    Raises:
        ConfigError: the products cannot be computed here (see `quantised.check_products`).
    """

    bounded_scores: bool = False
    """The parameters' `bounded_scores.score_bound` is within its `LARGEST_SCORE`: attention may use the kernel of
    `kernels.hopper_attention`."""
    products: Products = "full"
    """How the blocks' large matrix products are computed: in the compute type, or of factors rounded to 8 bits
    (`models.quantised`)."""

    def __post_init__(self) -> None:
        check_products(self.products)


PLAIN = Inference()
