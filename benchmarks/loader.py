"""Images per second of the input pipeline, with 0, 1 and 2 worker processes.

    python benchmarks/loader.py                                   the procedural avatars
    python benchmarks/loader.py --source folder --root DIR        a folder of images

Only loading is measured: nothing trains beside it. The start of the workers is timed separately.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DataConfig
from genaffect_jax.data.loader import make_loader
from genaffect_jax.data.sources.open import open_source


def main(
    source: Literal["procedural", "folder"] = "procedural",
    root: Path | None = None,
    image_size: int = 128,
    batch_size: int = 16,
    seconds: float = 8.0,
    workers: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Measures the loader.

    Args:
        source: Kind of source.
        root: Folder of images (source folder).
        image_size: Side of the images, in pixels.
        batch_size: Sets per batch, of four images each.
        seconds: How long each number of workers is measured.
        workers: Numbers of worker processes.
    """
    config = DataConfig(source=source, root=root, image_size=image_size, identities=64)
    table = Table("workers", "first batch, s", "images / s", "batches / s")
    with tempfile.TemporaryDirectory() as workdir:
        images = open_source(config, RunDir(Path(workdir)))
        people = sorted({p.identity for p in images.images})
        per_batch = batch_size * (1 + config.expressions_per_set)
        for count in workers:
            stream = make_loader(
                images,
                people,
                batch_size=batch_size,
                expressions_per_set=config.expressions_per_set,
                seed=0,
                workers=count,
            )
            start = time.perf_counter()
            next(stream)
            first = time.perf_counter() - start
            # What the workers made ready while they started is not their rate.
            for _ in range(3 * count):
                next(stream)
            batches, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                next(stream)
                batches += 1
            stream.close()
            table.add_row(
                str(count), f"{first:.1f}", f"{per_batch * batches / elapsed:.0f}", f"{batches / elapsed:.2f}"
            )
    console = Console()
    console.print(images.describe(), markup=False)
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
