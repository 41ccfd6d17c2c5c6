"""Softmax attention by platform: XLA everywhere, cuDNN's flash attention on NVIDIA GPUs, splash attention on TPUs.

All backends take `[B, length, N, H]`. They return the result and, if asked, the float32 log-sum-exp of every query's
scores, which is needed to merge two attentions.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float32

from genaffect_jax.kernels.deterministic_attention import deterministic_attention
from genaffect_jax.kernels.partition import run_partitioned
from genaffect_jax.kernels.remat import ATTENTION
from genaffect_jax.parallel.xla import is_deterministic, is_hopper, platform

Backend = Literal["xla", "cudnn", "splash"]
Result = tuple[Float[Array, "B Q N H"], Float32[Array, "B Q N"] | None]

# Tiles of a TPU have 128 lanes. The kernel takes blocks of whole tiles; larger blocks reuse keys more often.
_LANES = 128
_SPLASH_BLOCKS = (512, 256, 128)
# For one array of keys, `hopper_attention` is faster than cuDNN from so many queries on, if its tiles of 64 queries are
# nearly full (docs/notes/sampling_speed.md#consistent-attention-on-one-gpu).
MAX_FREE_FROM, MAX_FREE_TILE, MAX_FREE_WASTE = 1024, 64, 0.02


def choose_backend(dtype: Any, masked: bool) -> Backend:
    """The backend for the platform that programs are compiled for (`parallel.xla.platform`).

    cuDNN takes half precision only, and is used only without a mask.
    """
    if platform() == "tpu":
        return "splash"
    half = dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform() == "gpu" and half and not masked else "xla"


def has_max_free_attention(dtype: Any, head_size: int) -> bool:
    """Whether `kernels.hopper_attention` runs: on Hopper GPUs, whose own instructions it uses, for heads of size 64."""
    return is_hopper() and dtype in (jnp.bfloat16, jnp.float16) and head_size == 64


def prefers_max_free_attention(length: int, dtype: Any, head_size: int) -> bool:
    """Whether `kernels.hopper_attention` runs and is faster than cuDNN, for `length` queries and one array of keys."""
    waste = -length % MAX_FREE_TILE
    return length >= MAX_FREE_FROM and waste <= MAX_FREE_WASTE * length and has_max_free_attention(dtype, head_size)


def run_backend(
    backend: Backend,
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B K N H"],
    value: Float[Array, "B K N H"],
    mask: Bool[Array, "B K"] | None,
    return_lse: bool,
) -> Result:
    """Softmax attention in one backend.

    Inside `parallel.xla.deterministic` the gradient of cuDNN's attention is the same to the bit each time.

    Args:
        backend: see `choose_backend`.
        query, key, value: split into heads.
        mask: False hides a key; every batch entry must see at least one key.
        return_lse: whether to return the log-sum-exp.

    Returns:
        The result, and the log-sum-exp of every query's scores or None.

    Raises:
        ValueError: a mask for cuDNN.
        NotImplementedError: a gradient of cuDNN's or splash attention with log-sum-exp.
    """
    if backend == "splash":
        return _splash_partitioned(query, key, value, mask, return_lse)
    if backend == "xla":
        return xla_attention(query, key, value, mask, return_lse)
    if mask is not None:
        raise ValueError("cuDNN attention: takes no mask here")
    if return_lse:
        return _cudnn_with_lse(query, key, value)
    return _cudnn(query, key, value, is_deterministic()), None


def xla_attention(query: Array, key: Array, value: Array, mask: Array | None, return_lse: bool) -> Result:
    """Attention in XLA's own operations; the scores of all queries exist at once. See `run_backend`."""
    # The mask gets an axis for heads and one for queries.
    wide = None if mask is None else mask[:, None, None, :]
    if not return_lse:
        return jax.nn.dot_product_attention(query, key, value, mask=wide), None
    # Written out, because `jax.nn.dot_product_attention(return_residual=True)` rounds the log-sum-exp to the type of
    # the keys. In bfloat16 that is an error of some per cent in every merged weight.
    scores = jnp.einsum("bqnh,bknh->bnqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / np.sqrt(query.shape[-1])
    if wide is not None:
        scores = jnp.where(wide, scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(value.dtype)
    return jnp.einsum("bnqk,bknh->bqnh", weights, value), jnp.swapaxes(lse, 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cudnn(query: Array, key: Array, value: Array, deterministic: bool) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _cudnn_forward(query: Array, key: Array, value: Array, deterministic: bool) -> tuple[Array, Any]:
    return jax.vjp(partial(_cudnn_of_even_length, deterministic=deterministic), query, key, value)


def _cudnn_of_even_length(query: Array, key: Array, value: Array, deterministic: bool) -> Array:
    """cuDNN's attention with lengths padded to even ones.

    The backward pass refuses odd lengths. The forward pass alone takes them, and is faster without padding.
    """
    length, seen = query.shape[1], key.shape[1]
    even = [checkpoint_name(_pad_length(x, 2), ATTENTION) for x in (query, key, value)]
    if deterministic:
        out = deterministic_attention(*even, seen)
    else:
        lengths = jnp.full(key.shape[0], seen, jnp.int32) if seen % 2 else None
        out = jax.nn.dot_product_attention(*even, key_value_seq_lengths=lengths, implementation="cudnn")
    return out[:, :length]


_cudnn.defvjp(_cudnn_forward, lambda deterministic, backward, gradient: backward(gradient))


@jax.custom_vjp
def _cudnn_with_lse(query: Array, key: Array, value: Array) -> Result:
    # The function behind `jax.nn.dot_product_attention`, which itself would round the log-sum-exp to half precision.
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    out, lse = dot_product_attention(query, key, value, scale=1.0 / np.sqrt(query.shape[-1]), return_residual=True)
    return out, jnp.swapaxes(lse.astype(jnp.float32), 1, 2)  # cuDNN gives [B, N, Q]


def _no_gradient_with_lse(*_: Any) -> Any:
    # JAX's own gradient (0.10.2 to 0.11.2) drops that of the log-sum-exp without a word.
    raise NotImplementedError("cuDNN attention: the log-sum-exp has no gradient; differentiate attention without it")


_cudnn_with_lse.defvjp(_no_gradient_with_lse, _no_gradient_with_lse)


def _splash_partitioned(query: Array, key: Array, value: Array, mask: Array | None, return_lse: bool) -> Result:
    """`splash_attention` on each device's images and heads."""
    split, one_per_key, statistics = ("batch", None, "heads", None), ("batch", None), ("batch", None, "heads")
    return run_partitioned(
        partial(splash_attention, return_lse=return_lse),
        (query, key, value, mask),
        axes=(split, split, split, one_per_key),
        out=(split, statistics if return_lse else None),
    )


def splash_attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B K N H"],
    value: Float[Array, "B K N H"],
    mask: Bool[Array, "B K"] | None,
    return_lse: bool,
    interpret: bool = False,
) -> Result:
    """JAX's Pallas kernel for TPUs. Lengths are padded to whole tiles; padding and mask become segment numbers.

    Args:
        query, key, value, mask, return_lse: see `run_backend`.
        interpret: run the kernel in plain JAX, on any platform; for tests.
    """
    # Imported here: the modules bring Pallas's TPU backend with them, which nothing else needs.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, length, heads, size), seen = query.shape, key.shape[1]
    q, k, v = (jnp.swapaxes(_pad_length(x, _LANES), 1, 2) for x in (query, key, value))
    rows, columns = q.shape[2], k.shape[2]
    block_q, block_k = (next(b for b in _SPLASH_BLOCKS if n % b == 0) for n in (rows, columns))
    sizes = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((rows, columns))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        save_residuals=return_lse,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
    segments = None
    if mask is not None or columns != seen:  # queries have segment 0, hidden keys segment 1
        shown = jnp.ones(key.shape[:2], bool) if mask is None else mask
        hidden = jnp.pad(~shown, [(0, 0), (0, columns - seen)], constant_values=True).astype(jnp.int32)
        segments = kernels.SegmentIds(q=jnp.zeros((q.shape[0], rows), jnp.int32), kv=hidden)
    # The kernel does not divide by the square root of the head size.
    out = jax.vmap(kernel)((q.astype(jnp.float32) / np.sqrt(size)).astype(q.dtype), k, v, segments)
    lse = None
    if return_lse:
        out, (scores,) = out
        lse = jnp.swapaxes(scores, 1, 2)[:, :length].astype(jnp.float32)
    return jnp.swapaxes(out, 1, 2)[:, :length], lse


def _pad_length(x: Float[Array, "B S N H"], multiple: int) -> Float[Array, "B S+p N H"]:
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)])
