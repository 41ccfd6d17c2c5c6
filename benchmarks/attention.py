"""Attention of a set on a GPU, checked and timed: `python benchmarks/attention.py --help`.

Own keys of 16 images and the pools of their two groups, at the sizes of SD3.5-medium: cuDNN's two passes with a
merge, and `kernels.hopper_attention`'s one. Both are compared with float64 for a few queries.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from denoiser import milliseconds

from genaffect_jax.models.mmdit.attention import KeyValue, attend, attend_all, fold
from genaffect_jax.models.mmdit.consistent_attention import merge

HEADS, HEAD_SIZE = 24, 64
GROUPS, EXPRESSIONS = 2, 8
# Queries, own keys, keys of the pool (0: none).
CASES = {
    "set, 512 px": (1357, 845, 4096),
    "set, 1024 px": (4429, 2381, 16384),
    "image only, 512 px": (1024, 1024, 0),
    "image only, 1024 px": (4096, 4096, 0),
    "joint, 512 px": (1357, 1357, 0),
    "odd": (77, 5, 131),
    "few": (33, 7, 0),
}
CHECKED = 40


def two_passes(query: jax.Array, sources: list[KeyValue]) -> jax.Array:
    """The general path of `consistent_attention`."""
    own, *pools = sources
    if not pools:
        return attend(query, own.key, own.value)
    part = attend(query, own.key, own.value, return_lse=True)
    out, lse = attend(fold(query), pools[0].key, pools[0].value, return_lse=True)
    return merge(part, (out.reshape(part[0].shape), lse.reshape(part[1].shape)))


def exact(query: jax.Array, sources: list[KeyValue]) -> np.ndarray:
    """The first queries and heads in float64."""

    def widened(x: jax.Array) -> np.ndarray:
        array = np.asarray(x[..., :2, :], np.float64)
        return array if array.ndim == 5 else np.broadcast_to(array[:, None], (GROUPS, EXPRESSIONS, *array.shape[1:]))

    keys, values = (np.concatenate([widened(getattr(s, name)) for s in sources], axis=2) for name in ("key", "value"))
    scores = np.einsum("geqnh,geknh->genqk", np.asarray(query[:, :, :CHECKED, :2], np.float64), keys)
    weights = np.exp((scores - scores.max(-1, keepdims=True)) / np.sqrt(HEAD_SIZE))
    weights = weights / weights.sum(-1, keepdims=True)
    return np.einsum("genqk,geknh->geqnh", weights, values)


def main(cases: tuple[str, ...] = tuple(CASES), scale: float = 1.5, repeats: int = 8) -> None:
    """Compares the two.

    Args:
        cases: which of the cases.
        scale: standard deviation of queries, keys and values; scores have its square.
        repeats: timed rounds of three calls.
    """
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)
    for case in cases:
        length, own, pool = CASES[case]
        keys = iter(jax.random.split(jax.random.key(length), 5))

        def random(*shape: int, keys: Any = keys) -> jax.Array:
            return scale * jax.random.normal(next(keys), (*shape, HEADS, HEAD_SIZE), jnp.bfloat16)

        query = random(GROUPS, EXPRESSIONS, length)
        sources = [KeyValue(*(random(GROUPS, EXPRESSIONS, own) for _ in range(2)))]
        if pool:
            sources.append(KeyValue(*(random(GROUPS, pool) for _ in range(2))))
        wanted = exact(query, sources)
        for name, function in (("two passes", two_passes), ("one pass", attend_all)):
            call = partial(jax.jit(function), query, sources)
            found = np.asarray(call().reshape(query.shape)[:, :, :CHECKED, :2], np.float64)
            spent = milliseconds(call, repeats)
            operations = 4 * GROUPS * EXPRESSIONS * length * (own + pool) * HEADS * HEAD_SIZE
            row = {
                "case": case,
                "attention": name,
                "milliseconds": round(spent, 3),
                "tflops": round(operations / spent / 1e9),
                "relative_error": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
