"""Processor time per avatar on one core: `python benchmarks/avatars.py [--images 200]`.

Every image has another identity and another random expression; the median and the tail are over images. Each
image is drawn `REPEATS` times and its least processor time counts, so that other work on the machine counts little.
Nothing of an image is kept for the next (only spline weights are cached), so repeating one favours nothing but the
processor's own caches; the line "first drawing" shows what the first of the `REPEATS` took.
"""

from __future__ import annotations

import argparse
import os
import time

# One thread: small array products must not wake a pool. Set before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from genaffect_jax.avatars import render, sample_identity
from genaffect_jax.expressions.action_units import LOWEST, WIDTH

REPEATS = 5
TARGET = 200.0  # images per second at 256 x 256 on one core


def random_expression(seed: int) -> np.ndarray:
    """Cubed uniform intensities: a few strong channels and many faint ones, as in real expressions."""
    rng = np.random.Generator(np.random.PCG64(seed))
    strength = rng.random(WIDTH) ** 3
    return np.where(LOWEST < 0.0, strength * np.sign(rng.random(WIDTH) - 0.5), strength).astype(np.float32)


def measure(size: int, images: int) -> np.ndarray:
    """Processor seconds, shape `(2, images)`: of each image's fastest and of its first drawing."""
    times = np.empty((2, images))
    for i in range(images):
        identity, expression = sample_identity(i), random_expression(i)
        drawings = []
        for _ in range(REPEATS):
            start = time.process_time()
            render(identity, expression, size)
            drawings.append(time.process_time() - start)
        times[:, i] = min(drawings), drawings[0]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="images per size")
    arguments = parser.parse_args()
    measure(64, 3)  # fills the caches of spline weights
    start = time.process_time()
    for seed in range(200):
        sample_identity(seed)
    print(f"sample_identity: {(time.process_time() - start) / 200 * 1e6:.0f} us")
    for size in (64, 128, 256):
        times, first = measure(size, arguments.images) * 1e3
        rate = 1e3 / float(np.median(times))
        note = f"  (target {TARGET:.0f})" if size == 256 else ""
        print(
            f"{size:3d} px: median {np.median(times):.2f} ms, 95th percentile {np.percentile(times, 95):.2f} ms, "
            f"{rate:.0f} images/s{note}; first drawing: median {np.median(first):.2f} ms"
        )


if __name__ == "__main__":
    main()
