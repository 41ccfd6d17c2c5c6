"""Memory and time of loading and saving a full-size SD3.5-medium: `python benchmarks/weights_memory.py --help`.

A folder of random bfloat16 weights (5 GB) is written, a fresh process loads it, and a copy is saved from there. On
the CPU the loaded weights lie in host memory too, so they are part of every peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tyro

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.interop.diffusers.folders import new_component
from genaffect_jax.interop.diffusers.rules import match
from genaffect_jax.interop.diffusers.tensor_files import write_tensors
from genaffect_jax.interop.diffusers.weights import TRANSFORMER, load_transformer, save_transformer
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.functional import parameters_of

SHARD_BYTES = 2 * 2**30
SAMPLING_SECONDS = 0.005


def main(folder: Path = Path("/tmp")) -> None:
    """Writes, loads and saves; prints what each took.

    Args:
        folder: where 10 GB are free; what is written there is deleted again.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary) / "written"
        write_random(written)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, "measure", str(written), str(Path(temporary) / "saved")]
        subprocess.run(command, env=environment, check=True)


def write_random(folder: Path) -> None:
    """A transformer folder of random weights, in shards."""
    config = MMDiTConfig.sd35_medium()
    shapes = {name: s.shape for name, s in TRANSFORMER.network(config).shapes.items()}
    pieces = {piece.key: piece for piece in match(TRANSFORMER.rules(config), shapes, None, str(folder))}
    with new_component(folder, TRANSFORMER.class_name, TRANSFORMER.unparse(config)) as temporary:
        write_tensors(temporary, RepeatedNoise({key: piece.shape for key, piece in pieces.items()}), SHARD_BYTES)


class RepeatedNoise:
    """Tensors of any size from a million normal numbers, in bfloat16 (see `tensor_files.Tensors`)."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """`shapes`: key to shape."""
        self._noise = np.random.default_rng(0).standard_normal(2**20, np.float32).astype(ml_dtypes.bfloat16)
        self.shapes = shapes
        self.dtypes: dict[str, WeightDType] = dict.fromkeys(shapes, "bfloat16")

    def read(self, key: str) -> np.ndarray:
        """One tensor."""
        return np.resize(self._noise, self.shapes[key])


def measure(written: Path, saved: Path) -> None:
    """Loads and saves in this process."""
    files = sum(p.stat().st_size for p in written.glob("*.safetensors"))
    print(f"files: {files / 1e9:.3f} GB in {len(list(written.glob('*.safetensors')))} shards")
    jax.block_until_ready(jax.numpy.zeros(()))  # the backend's own memory belongs to no step
    model = observed("load", lambda: load_transformer(written))
    weights = sum(p.nbytes for p in parameters_of(model).values())
    print(f"weights: {weights / 1e9:.3f} GB in {len(parameters_of(model))} parameters")
    observed("save", lambda: save_transformer(model, saved))
    kept = [json.loads((f / "config.json").read_text()) for f in (written, saved)]
    assert kept[0] == kept[1]


def observed(what: str, action: Callable[[], Any]) -> Any:
    """Runs `action` and prints its time and the largest memory of this process meanwhile."""
    before, peak, done = memory("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], memory("RssAnon"))

    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts anew
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(
        f"{what}: {seconds:.1f} s; resident before {before / 1e9:.3f} GB, highest {memory('VmHWM') / 1e9:.3f} GB "
        f"(anonymous, sampled: {peak[0] / 1e9:.3f} GB), after {memory('RssAnon') / 1e9:.3f} GB"
    )
    return result


def memory(entry: str) -> int:
    """Bytes of one entry of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{entry}:")).split()[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        tyro.cli(main)
