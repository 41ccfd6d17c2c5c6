"""Price of the digests of checkpoints: seconds to save and to restore a state with and without them.

    python benchmarks/checkpoint_digests.py --megabytes 128 --repeats 5

`megabytes` is the size of the parameters; a checkpoint holds four times as much (average and two moments). Random
numbers are saved, as trained weights compress no better. Files are read from the page cache, so that the share is the
largest that can be seen: a slow disk takes longer for the same digests.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

from genaffect_jax.checkpoints import manager
from genaffect_jax.checkpoints.manager import Checkpoints


@dataclass(frozen=True)
class State:
    """What `Checkpoints` saves."""

    step: jax.Array
    parameters: dict[str, jax.Array]
    frozen_params: dict[str, jax.Array]
    ema: dict[str, jax.Array]
    optimizer: dict[str, jax.Array]


def make_state(megabytes: int) -> State:
    """Random parameters in arrays of 4 MB, average and two moments."""

    def arrays(seed: int) -> dict[str, jax.Array]:
        return {f"{i}": jax.random.normal(jax.random.key(1000 * seed + i), (1024, 1024)) for i in range(megabytes // 4)}

    moments = {**{f"m{k}": v for k, v in arrays(2).items()}, **{f"v{k}": v for k, v in arrays(3).items()}}
    return State(jnp.asarray(1, jnp.int32), arrays(0), {}, arrays(1), moments)


def without_digests() -> contextlib.ExitStack:
    """In this context no digest is computed."""
    stack = contextlib.ExitStack()
    for name in ("write_checkpoint_digests", "require_checkpoint_intact"):
        stack.enter_context(mock.patch.object(manager, name))
    return stack


@contextlib.contextmanager
def timed(times: list[float]) -> Iterator[None]:
    """Appends the seconds of the block."""
    start = time.perf_counter()
    yield
    times.append(time.perf_counter() - start)


def main(megabytes: int = 128, repeats: int = 5) -> None:
    """Prints medians over `repeats` of each case, which alternate."""
    state: Any = make_state(megabytes)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), vars(state))
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for case in ("without", "with"):
            with contextlib.ExitStack() as stack:
                if case == "without":
                    stack.enter_context(without_digests())
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                with Checkpoints(folder) as checkpoints:
                    with timed(times.setdefault(f"save returns, {case}", [])):
                        checkpoints.save(state, {}, "{}")
                    with timed(times.setdefault(f"save complete, {case}", [])):
                        checkpoints.close()
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                read = Checkpoints(folder)
                with timed(times.setdefault(f"restore, {case}", [])):
                    jax.block_until_ready(vars(read.restore(State(**abstract))[0]))
                with timed(times.setdefault(f"read configuration, {case}", [])):
                    read.config()
    print(f"checkpoint of {size / 1e6:.0f} MB, median of {repeats}")
    for name, values in sorted(times.items()):
        print(
            f"{name}: {1000 * statistics.median(values):.0f} ms ({1000 * min(values):.0f} to {1000 * max(values):.0f})"
        )


if __name__ == "__main__":
    tyro.cli(main)
