"""Layers that all networks are made of: linear layers, RMS norm, the feed-forward network, convolutions.

Parameters are float32. Each carries `logical_axes`, a tuple with one name or None per axis, which `parallel.sharding`
maps to mesh axes. Layers compute in the `dtype` that they are given, normalisations in float32.

A linear layer can also give its product and its bias apart (`product_and_bias`), so that a following operation adds the
bias in its own pass over the tokens (`kernels.fused_bias`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, variance_scaling, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from genaffect_jax.kernels.convolution import convolve
from genaffect_jax.kernels.fused_bias import add_bias
from genaffect_jax.kernels.fused_mlp import gelu_products
from genaffect_jax.kernels.matmul import matmul
from genaffect_jax.kernels.norms import rms_norm
from genaffect_jax.kernels.remat import keep_product

CONV_AXES = (None, None, "conv_in", "conv_out")
VECTOR_AXES = (None,)

# A bias as `product_and_bias` gives it: float32, or None for a layer without one.
Bias = Float[Array, " o"] | None

xavier_uniform: Initializer = variance_scaling(1.0, "fan_avg", "uniform")


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis.

    Args:
        in_features, out_features: widths.
        axes: logical names of the kernel's two axes.
        use_bias: whether there is a bias.
        kernel_init, bias_init: initialisers.
        rngs: source of the initial values.
        dtype: type of the factors.
        out_dtype: type of the sums and of the result; `dtype` if left out.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None],
        use_bias: bool = True,
        kernel_init: Initializer = xavier_uniform,
        bias_init: Initializer = zeros,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        out_dtype: Any = None,
    ) -> None:
        self.dtype, self.out_dtype = dtype, dtype if out_dtype is None else out_dtype
        shape = (in_features, out_features)
        kernel = kernel_init(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel, logical_axes=axes, compute_dtypes=dtype)
        bias = bias_init(rngs.params(), (out_features,), jnp.float32)
        self.bias = nnx.Param(bias, logical_axes=(None,)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return with_bias(*self.product_and_bias(x))

    def product_and_bias(self, x: Float[Array, "*batch i"]) -> tuple[Float[Array, "*batch o"], Bias]:
        """`x @ kernel`, and the bias (None: there is none)."""
        product = matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.out_dtype)
        return product, None if self.bias is None else self.bias[...]


def with_bias(product: Float[Array, "*batch o"], bias: Bias) -> Float[Array, "*batch o"]:
    """`product + bias` in the type of the product, which the backward pass keeps (`kernels.remat`)."""
    return keep_product(product if bias is None else add_bias(product, bias))


def joined_product_and_bias(
    x: Float[Array, "*batch i"], layers: Sequence[Linear]
) -> tuple[Float[Array, "*batch n*o"], Float[Array, " n*o"]]:
    """`product_and_bias` of n biased layers of one width and type, joined: one product, which reads `x` once."""
    assert all(layer.bias is not None for layer in layers)
    dtype = layers[0].dtype
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
    product = matmul(x.astype(dtype), kernel.astype(dtype), dtype)
    return product, jnp.concatenate([layer.bias[...] for layer in layers if layer.bias is not None])


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation of the last axis with a learned scale (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, *, initial_scale: float = 1.0, dtype: Any = jnp.float32) -> None:
        self.dtype = dtype
        self.scale = nnx.Param(jnp.full((features,), initial_scale, jnp.float32), logical_axes=(None,))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return rms_norm(x, self.scale[...]).astype(self.dtype)


class MLP(nnx.Module):
    """The transformer's feed-forward network: two linear layers with GELU, in its tanh form, between them.

    Args:
        in_features, hidden_features, out_features: widths.
        axes: logical axes of the three.
        up_init, down_init: initial values of the two kernels.
        keep_activation: see `kernels.fused_mlp.gelu_products`.
        rngs: source of the initial values.
        dtype: compute type.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        axes: tuple[str | None, str | None, str | None] = ("embed", "mlp", "embed"),
        up_init: Initializer = xavier_uniform,
        down_init: Initializer = xavier_uniform,
        keep_activation: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        common: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.keep_activation = keep_activation
        self.up = Linear(in_features, hidden_features, axes=axes[:2], kernel_init=up_init, **common)
        self.down = Linear(hidden_features, out_features, axes=axes[1:], kernel_init=down_init, **common)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return with_bias(*self.product_and_bias(x))

    def product_and_bias(self, x: Float[Array, "*batch i"]) -> tuple[Float[Array, "*batch o"], Bias]:
        """The result before its last bias is added, and that bias."""
        up, down = self.up, self.down
        assert up.bias is not None
        assert down.bias is not None
        product = gelu_products(x, up.kernel[...], up.bias[...], down.kernel[...], up.dtype, self.keep_activation)
        return product, down.bias[...]


class Conv(nnx.Conv):
    """A convolution over images [B, H, W, C] with the gradients of `kernels.convolution` and `kernels.fused_bias`.

    XLA sums the gradient of a bias over all pixels at a fraction of a GPU's memory rate.
    """

    def __call__(self, inputs: Float[Array, "B H W i"]) -> Float[Array, "B h w o"]:  # type: ignore[override]
        product = convolve(
            inputs.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            self.strides,
            self.padding,
        )
        assert self.bias is not None
        return add_bias(product, self.bias[...])


def conv(
    inputs: int,
    outputs: int,
    *,
    size: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    shard_outputs: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Conv:
    """A square convolution over images [B, H, W, C].

    Args:
        inputs, outputs: channels.
        size: side of the kernel, in pixels.
        stride: step between output pixels, in input pixels.
        padding: zeros before and after each side; `size // 2` of both if left out.
        shard_outputs: whether the output channels may be cut over devices. Those of latents and images are too few.
        dtype: compute type.
        rngs: source of the initial values.
    """
    edges = (size // 2, size // 2) if padding is None else padding
    return Conv(
        inputs,
        outputs,
        (size, size),
        (stride, stride),
        padding=(edges, edges),
        dtype=dtype,
        rngs=rngs,
        kernel_metadata={"logical_axes": CONV_AXES if shard_outputs else (*CONV_AXES[:-1], None)},
        bias_metadata={"logical_axes": VECTOR_AXES},
    )
