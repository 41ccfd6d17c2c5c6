"""cuDNN's flash attention with a gradient that is the same to the bit each time.

The gradient of the queries is a sum over blocks of keys. By default cuDNN adds the blocks in the order in which they
happen to finish. XLA's description of the call has a field, `force_deterministic`, that fixes the order, and JAX has no
way to set it. The gradient here is JAX's own call with that one field more, for programs that are compiled with
`parallel.xla.deterministic_options`.

Field and compiler option need each other. XLA (jaxlib 0.11.2, `cudnn_custom_call_compiler.cc`) writes the option's
value into the field of the first of several equal calls only. Without the option the field would be taken back; with
the option alone, a program with two equal calls does not compile (IndexError), as the second is not found under the
description of the first.
"""

from __future__ import annotations

import inspect
import json
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import mlir
from jaxtyping import Array, Float

from genaffect_jax.errors import ConfigError
from genaffect_jax.kernels.partition import run_partitioned
from genaffect_jax.kernels.remat import ATTENTION

# Parameters of JAX's function that describes the call (0.10.2 to 0.11.2).
_DESCRIBED_BY = [
    *("batch", "num_heads", "seq_q", "seq_kv", "dtype", "fmha_scale", "seed", "dropout_rate", "mask_type", "layout"),
    *("sliding_window_length", "max_seg_per_batch", "is_paged_attention", "is_bwd"),
]
_TABLE, _FIELD = "cudnn_fmha_backend_config", "force_deterministic"
_SEED, _DROPOUT = 42, 0.0  # JAX's defaults; nothing is dropped, so the seed has no effect


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def deterministic_attention(
    query: Float[Array, "B Q N H"], key: Float[Array, "B K N H"], value: Float[Array, "B K N H"], seen: int
) -> Float[Array, "B Q N H"]:
    """Softmax attention in cuDNN, whose gradient is the same to the bit each time.

    Args:
        query, key, value: in half precision, of even lengths.
        seen: the first so many keys are attended to; the others are padding.

    Raises:
        ConfigError: this version of JAX describes the call in another way.
    """
    return _forward(query, key, value, seen)[0]


def _forward(query: Array, key: Array, value: Array, seen: int) -> tuple[Array, Any]:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths = _lengths(query, key, seen)
    out, statistics = dot_product_attention(
        query,
        key,
        value,
        q_seqlen=lengths[0] if lengths else None,
        kv_seqlen=lengths[1] if lengths else None,
        scale=_scale(query),
        mask_type=MaskType.PADDING if lengths else MaskType.NO_MASK,
        return_residual=True,
    )
    out, statistics = (checkpoint_name(x, ATTENTION) for x in (out, statistics))
    return out, (query, key, value, statistics, out)


def _backward(seen: int, kept: Any, gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, statistics, out = kept
    split = ("batch", None, "heads", None)
    lengths = _lengths(query, key, seen)
    return run_partitioned(
        _gradient_call,
        (query, key, value, statistics, gradient, out, *lengths),
        axes=(split, split, split, ("batch", "heads", None), split, split, *[("batch",)] * len(lengths)),
        out=(split, split, split),
    )


deterministic_attention.defvjp(_forward, _backward)


def _gradient_call(*operands: Array) -> tuple[Array, Array, Array]:
    """The gradients of queries, keys and values; operands in the order of JAX's call, which is XLA's."""
    query, key, *_ = operands
    padded = len(operands) > 6
    transposed = [jax.ShapeDtypeStruct((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), x.dtype) for x in operands[:3]]
    workspace = jax.ShapeDtypeStruct((0,), jnp.uint8)
    call = jax.ffi.ffi_call(
        "__cudnn$fmhaSoftmaxBackward",
        [*transposed, workspace],
        # The arrays are described with heads before tokens, and lie in memory as the operands do.
        output_layouts=[*[(0, 2, 1, 3)] * 3, (0,)],
        custom_call_api_version=2,
        legacy_backend_config=describe_gradient(query.shape, key.shape[1], query.dtype.name, padded),
    )
    dquery, dkey, dvalue, _ = call(*operands)
    return tuple(jnp.swapaxes(x, 1, 2) for x in (dquery, dkey, dvalue))  # type: ignore[return-value]


@lru_cache
def describe_gradient(shape: tuple[int, ...], keys: int, dtype: str, padded: bool) -> str:
    """XLA's description of the gradient's call, as JSON, with the order of sums fixed.

    Args:
        shape: of the queries, [B, Q, N, H].
        keys: number of keys K.
        dtype: `bfloat16` or `float16`.
        padded: whether the call gets the numbers of queries and keys that count.

    Raises:
        ConfigError: this version of JAX describes the call in another way.
    """
    from jax._src.cudnn.fused_attention_stablehlo import AttentionLayout, MaskType

    batch, queries, heads, size = shape
    with mlir.make_ir_context():
        text = _description_function()(
            batch,
            heads,
            queries,
            keys,
            mlir.dtype_to_ir_type(jnp.dtype(dtype)),
            1.0 / np.sqrt(size),
            _SEED,
            _DROPOUT,
            MaskType.PADDING if padded else MaskType.NO_MASK,
            AttentionLayout.BTNH.value,
            None,
            1,
            False,
            is_bwd=True,
        )
    description = json.loads(text)
    if _FIELD in description.get(_TABLE, {_FIELD: None}):
        raise _unknown(
            f"its description of the call has the entries {sorted(description)} and no table {_TABLE} to add to"
        )
    description[_TABLE][_FIELD] = True
    return json.dumps(description)


def _description_function() -> Any:
    try:
        from jax._src.cudnn.fused_attention_stablehlo import create_dot_product_attention_backend_config as function
    except ImportError as e:
        raise _unknown(str(e)) from e
    found = list(inspect.signature(function).parameters)
    if found != _DESCRIBED_BY:
        raise _unknown(f"{function.__name__} takes {', '.join(found)}; known is {', '.join(_DESCRIBED_BY)}")
    return function


def _unknown(reason: str) -> ConfigError:
    return ConfigError(
        f"the gradient of cuDNN's attention cannot be made deterministic with jax {jax.__version__}: {reason}. "
        "Use a version from 0.10.2 to 0.11.2, or train without",
        field="train.deterministic",
        found=True,
    )


def _lengths(query: Array, key: Array, seen: int) -> tuple[Array, ...]:
    """Numbers of queries and keys that count, one for each batch entry; none if all do."""
    if seen == key.shape[1]:
        return ()
    return tuple(jnp.full(query.shape[0], n, jnp.int32) for n in (query.shape[1], seen))


def _scale(query: Array) -> float:
    return 1.0 / np.sqrt(query.shape[-1])
