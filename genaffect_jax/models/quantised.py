"""Matrix products of rounded factors: 8-bit integers or 8-bit floats, with one scale per token and output channel.

A network that draws may compute its large products so; its parameters stay what they are, and each kernel is rounded
inside the program, before its product. That is cheap where many pictures are drawn: it passes over the kernel's numbers
twice (largest of each column, rounding), and the product then uses each of them once per token, 16,384 times for the
image tokens of 16 pictures of 512 px. By arithmetic, SD3.5-medium's 1.5 billion numbers in bfloat16 are 9 GB of memory
traffic, 2 of the 78 ms of such a forward (docs/performance.md). It is not cheap for a handful of tokens: products with
one row per picture are better left in full.

A token's scale depends on that token alone, so a picture does not depend on what is drawn beside it. Rounding has no
useful gradient: networks that train use full products.

Needs the extra `quantised` (qwix).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from genaffect_jax.errors import ConfigError, install_command
from genaffect_jax.kernels.matmul import full_product

Products = Literal["full", "int8", "float8"]
ROUNDED = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}


def check_products(products: str) -> None:
    """Refuses products that cannot be computed here.

    Raises:
        ConfigError: an unknown word, or the extra `quantised` is missing.
    """
    if products not in get_args(Products):
        raise ConfigError(f"--products {products}: unknown, must be one of {', '.join(get_args(Products))}")
    if products != "full":
        try:
            import_module("qwix")
        except ImportError as e:
            raise ConfigError(
                f"--products {products}: needs qwix, which cannot be imported: {e} ({install_command('quantised')})"
            ) from e


def product(
    x: Float[Array, "*batch i"], kernel: Float[Array, "i o"], products: Products, dtype: Any, out_dtype: Any
) -> Float[Array, "*batch o"]:
    """`x @ kernel` over the last axis of `x`.

    Args:
        x: tokens.
        kernel: weights, in any float type.
        products: "full" multiplies in `dtype`; the others round each row of `x` and each column of the kernel to 8 bits
            by its largest magnitude and multiply those. Integer sums are exact, those of floats are float32.
        dtype: type of what is multiplied in full.
        out_dtype: type of the result.
    """
    if products == "full":
        return full_product(x.astype(dtype), kernel.astype(dtype), out_dtype)
    import qwix

    # float32 before the division by the scale: bfloat16 quotients near 127 are halves, and would be rounded twice.
    tokens, weights = (
        qwix.quantize(array.astype(jnp.float32), ROUNDED[products], channelwise_axes=axes)
        for array, axes in ((x, tuple(range(x.ndim - 1))), (kernel, (1,)))
    )
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    return qwix.dot_general(tokens, weights, contracted, preferred_element_type=jnp.float32).astype(out_dtype)
