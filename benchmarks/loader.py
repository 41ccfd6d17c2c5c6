"""Images per second of the input pipeline: pixels with 0, 1 and 2 worker processes, cached features, index batches.

    python benchmarks/loader.py                                   the procedural avatars
    python benchmarks/loader.py --source folder --root DIR        a folder of images
    python benchmarks/loader.py --batch-size 64 --latents 32 32 16     latents of 256-px images

Only loading is measured: nothing trains beside it, and nothing is copied to devices. The start of the workers is timed
separately. The cached features are noise of `--latents`, one row per image; how fast they are read does not depend on
their values. Batches by index are what travels where the cached data set is kept on the devices.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DataConfig
from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.loader import Loader, make_loader
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.open import open_source


def main(
    source: Literal["procedural", "folder"] = "procedural",
    root: Path | None = None,
    image_size: int = 128,
    batch_size: int = 16,
    seconds: float = 8.0,
    workers: tuple[int, ...] = (0, 1, 2),
    latents: tuple[int, int, int] = (16, 16, 16),
) -> None:
    """Measures the loader.

    Args:
        source: Kind of source.
        root: Folder of images (source folder).
        image_size: Side of the images, in pixels.
        batch_size: Sets per batch, of four images each.
        seconds: How long each kind of batch is measured.
        workers: Numbers of worker processes, for pixels.
        latents: Height, width and channels of the cached latents.
    """
    config = DataConfig(source=source, root=root, image_size=image_size, identities=64)
    table = Table("batches", "workers", "first batch, s", "images / s", "batches / s")
    with tempfile.TemporaryDirectory() as workdir:
        images = open_source(config, RunDir(Path(workdir)))
        people = sorted({example.identity for example in images.examples})

        def measure(kind: str, source: Source, workers: int, by_index: bool = False) -> None:
            stream = make_loader(
                source,
                people,
                batch_size=batch_size,
                expressions_per_set=config.expressions_per_set,
                seed=0,
                workers=workers,
                by_index=by_index,
            )
            first, rate = timed(stream, workers, seconds)
            per_batch = batch_size * (1 + config.expressions_per_set)
            table.add_row(kind, str(workers), f"{first:.1f}", f"{per_batch * rate:.0f}", f"{rate:.2f}")

        for count in workers:
            measure("pixels", images, count)
        cached = CachedFeatures(images, write_noise(Path(workdir) / "noise.npy", len(images.examples), latents))
        measure(f"latents {' x '.join(map(str, latents))}", cached, 0)
        measure("by index", cached, 0, by_index=True)
    console = Console()
    console.print(images.describe(), markup=False)
    console.print(table)


def timed(stream: Loader, workers: int, seconds: float) -> tuple[float, float]:
    """Seconds of the first batch, and batches per second after it."""
    start = time.perf_counter()
    next(stream)
    first = time.perf_counter() - start
    # What the workers made ready while they started is not their rate.
    for _ in range(3 * workers):
        next(stream)
    batches, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        next(stream)
        batches += 1
    stream.close()
    return first, batches / elapsed


def write_noise(path: Path, count: int, latents: tuple[int, int, int]) -> Path:
    """A file of cached features in the layout of `data.feature_writer.write_features`."""
    rows = np.zeros(count, [("latents", np.float16, latents)])
    rows["latents"] = np.random.default_rng(0).standard_normal((count, *latents), np.float32)
    np.save(path, rows)
    return path


if __name__ == "__main__":
    tyro.cli(main)
