"""Passes over tokens that also sum over them, one kernel against XLA: `python benchmarks/token_reduce.py --help`.

The gradients that use `kernels.token_reduce`, at the shapes of one training step of SD3.5-medium at 512 px with 16
images. For each, milliseconds and GB/s (tokens read and written once) of the kernel and of the same function on whole
arrays as XLA compiles it, and the largest relative error of the kernel's results against the latter, which computes in
float32 as well (tokens are rounded to bfloat16 at the end in both). Needs a Hopper GPU. One JSON line for each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from genaffect_jax.kernels.fused_bias import gated_residual_gradient, qk_norm_gradient
from genaffect_jax.kernels.fused_mlp import gelu_and_gradient, gelu_gradient
from genaffect_jax.kernels.hopper_token_reduce import hopper_token_reduce
from genaffect_jax.kernels.norms import norm_gradient
from genaffect_jax.kernels.token_reduce_reference import TokenFunction, token_reduce_reference
from genaffect_jax.parallel.xla import is_hopper

WIDTH, HEAD = 1536, 64
# name: function; images and tokens; features; tokens, vectors, numbers read; tokens written; sums; group.
CASES: dict[str, tuple[TokenFunction, tuple[int, int], int, tuple[int, int, int], int, int, int | None]] = {
    "gelu, image": (gelu_and_gradient, (1, 16384), 4 * WIDTH, (2, 0, 0), 2, 1, None),
    "gelu kept, image": (gelu_gradient, (1, 16384), 4 * WIDTH, (2, 0, 0), 1, 1, None),
    "gelu, text": (gelu_and_gradient, (1, 5328), 4 * WIDTH, (2, 0, 0), 2, 1, None),
    "heads, image": (qk_norm_gradient, (1, 16384), 3 * WIDTH, (2, 2, 0), 1, 2, HEAD),
    "heads, text": (qk_norm_gradient, (1, 5328), 3 * WIDTH, (2, 2, 0), 1, 2, HEAD),
    "gate, image": (gated_residual_gradient, (16, 1024), WIDTH, (2, 1, 0), 1, 2, None),
    "norm, image": (norm_gradient, (16, 1024), WIDTH, (3, 1, 4), 1, 2, None),
    "norm, text": (norm_gradient, (16, 333), WIDTH, (3, 1, 4), 1, 2, None),
}


def milliseconds(function: Callable[..., Any], arguments: Any, calls: int) -> float:
    """Median of five; calls are queued."""
    jax.block_until_ready(function(*arguments))

    def run() -> float:
        start = time.perf_counter()
        results = [function(*arguments) for _ in range(calls)]
        jax.block_until_ready(results[-1])
        return (time.perf_counter() - start) * 1e3 / calls

    return median(run() for _ in range(5))


def main(calls: int = 20) -> None:
    """Times all cases, each with `calls` calls in a row."""
    if not is_hopper():
        raise SystemExit(f"the kernel needs a Hopper GPU; JAX runs on {jax.devices()[0].device_kind}")
    for name, (function, (images, length), width, (tokens, vectors, numbers), outputs, sums, group) in CASES.items():

        def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.normal(jax.random.key(seed), shape).astype(dtype)

        arguments = (
            [normal(i, images, length, width, dtype=jnp.bfloat16) for i in range(tokens)],
            [normal(10 + i, images, width) for i in range(vectors)],
            [normal(20 + i, images, length) for i in range(numbers)],
        )
        kernel = jax.jit(lambda *a, f=function, o=outputs, s=sums: hopper_token_reduce(f, *a, o, s))
        whole = jax.jit(lambda t, v, n, f=function, g=group: token_reduce_reference(f, t, v, n, g))
        errors = jax.tree.map(
            lambda a, b: float(jnp.linalg.norm((a - b).astype(jnp.float32)) / jnp.linalg.norm(b.astype(jnp.float32))),
            kernel(*arguments),
            whole(*arguments),
        )
        size = (tokens + outputs) * images * length * width * 2
        times = {"kernel": milliseconds(kernel, arguments, calls), "xla": milliseconds(whole, arguments, calls)}
        row = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "case": name,
            **{f"{way}_milliseconds": round(spent, 3) for way, spent in times.items()},
            **{f"{way}_gb_per_second": round(size / spent / 1e6) for way, spent in times.items()},
            "largest_relative_error": float(f"{max(jax.tree.leaves(errors)):.1e}"),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
