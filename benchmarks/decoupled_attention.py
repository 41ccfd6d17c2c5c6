"""Attention of one block with condition branches, one kernel against separate ones.

    python benchmarks/decoupled_attention.py                    the shapes of avatar_s with 4 heads, 64 sets of 4 images

Both compute QK norm of the image tokens, joint attention of image and text, and the attention of the image queries to
identity and expression tokens, in bfloat16. For the forward pass, and for forward and backward pass together, each
line has milliseconds and the largest relative error of results and gradients against the separate attentions in
float32. Needs a Hopper GPU. One JSON line each.
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

from genaffect_jax.kernels.decoupled_attention import has_decoupled_attention
from genaffect_jax.kernels.norms import rms_norm
from genaffect_jax.models.mmdit.attention import (
    QKV,
    BeforeNorm,
    BranchInputs,
    KeyValue,
    decoupled_cross_attention,
    fused_attention,
    joint_attention,
)

HEAD = 64
Parts = tuple[BeforeNorm, QKV, BranchInputs]


def main(
    groups: int = 64,
    expressions: int = 4,
    heads: int = 4,
    image: int = 256,
    text: int = 8,
    identity: int = 64,
    expression: int = 8,
    calls: int = 50,
) -> None:
    """Compares times and errors.

    Args:
        groups: Sets.
        expressions: Images of a set.
        heads: Attention heads.
        image: Image tokens of an image.
        text: Text or register tokens of an image.
        identity: Identity tokens of a set.
        expression: Expression tokens of an image.
        calls: Calls in a row, five times.
    """
    if not has_decoupled_attention(jnp.bfloat16, HEAD, image, text + expression, identity):
        raise SystemExit(f"the kernel takes no such sizes on {jax.devices()[0].device_kind}")
    exact = random_parts(groups, expressions, heads, image, text, identity, expression)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim > 1 else x, exact)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    with jax.default_matmul_precision("highest"):
        reference = jax.block_until_ready(jax.jit(with_gradients(separate))(exact))
    for name, function in (("one kernel", fused_attention), ("separate", separate)):
        both = jax.jit(with_gradients(lambda *parts, f=function: f(*parts)))
        forward = jax.jit(lambda parts, f=function: f(*parts))
        row = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "attention": name,
            "forward_milliseconds": round(milliseconds(forward, half, calls), 4),
            "both_milliseconds": round(milliseconds(both, half, calls), 4),
            "largest_relative_error": float(f"{largest_error(both(half), reference):.1e}"),
        }
        print(json.dumps(row), flush=True)


def separate(image: BeforeNorm, text: QKV, branches: BranchInputs) -> tuple[jax.Array, jax.Array]:
    """What `fused_attention` computes, as separate norms and attentions."""

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], -1, HEAD)

    query = rms_norm(heads(image.query), image.query_scale).astype(image.query.dtype)
    key = rms_norm(heads(image.key_value[..., 0, :]), image.key_scale).astype(image.query.dtype)
    qkv = QKV(query, key, heads(image.key_value[..., 1, :]))
    mixed, mixed_text = joint_attention(qkv, text)
    return decoupled_cross_attention(mixed, query, branches), mixed_text


def with_gradients(function: Callable[..., Any]) -> Callable[[Parts], Any]:
    """Results, and the gradients of the sum of squared results."""

    def both(parts: Parts) -> Any:
        def loss(parts: Parts) -> tuple[jax.Array, Any]:
            results = function(*parts)
            return jnp.stack([jnp.square(x.astype(jnp.float32)).sum() for x in results]).sum(), results

        (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(parts)
        return results, gradients

    return both


def random_parts(
    groups: int, expressions: int, heads: int, image: int, text: int, identity: int, expression: int
) -> Parts:
    """Normal tokens; text, identity and expression as after their norms."""
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape)

    each = (groups, expressions)
    own = (*each, text, heads, HEAD)
    of_image = BeforeNorm(
        normal(*each, image, heads * HEAD), normal(*each, image, 2, heads * HEAD), jnp.ones(HEAD), jnp.ones(HEAD)
    )
    branches = BranchInputs(
        KeyValue(*(normal(groups, identity, heads, HEAD) for _ in range(2))),
        KeyValue(*(normal(*each, expression, heads, HEAD) for _ in range(2))),
        jnp.ones(()),
        jnp.ones(()),
    )
    return of_image, QKV(normal(*own), normal(*own), normal(*own)), branches


def milliseconds(function: Callable[[Parts], Any], parts: Parts, calls: int) -> float:
    """Median of five; calls are queued."""
    jax.block_until_ready(function(parts))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            results = function(parts)
        jax.block_until_ready(results)
        return (time.perf_counter() - start) * 1e3 / calls

    return median(run() for _ in range(5))


def largest_error(found: Any, expected: Any) -> float:
    """The largest relative error (in the 2-norm) of all arrays but the branches' scales, which are not trained."""

    def error(a: jax.Array, b: jax.Array) -> float:
        return b.ndim and float(jnp.linalg.norm((a.astype(jnp.float32) - b).ravel()) / jnp.linalg.norm(b.ravel()))

    return max(jax.tree.leaves(jax.tree.map(error, found, expected)))


if __name__ == "__main__":
    tyro.cli(main)
