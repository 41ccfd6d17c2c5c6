"""Images per second of writing cached features, and what bounds it.

    python benchmarks/encode_features.py --workers 32 --images 80000          one GPU, 32 processor cores
    python benchmarks/encode_features.py --config configs/avatar_tiny.py --images 2000

Three lines are printed:

rendering   N worker processes render into shared memory, and no network reads it: the bound of the processors
networks    the preset's networks encode the same images again and again: the bound of the devices
writing     `data.feature_writer.write_features` as training calls it, with both

Each line has two rates. The first is over everything, the start of the workers and, for `writing`, compilation beside
it included; the second counts from the end of the first call on. The autoencoder's weights are random; the face
encoders are the preset's. Making the source, which knows all expressions before any image is rendered, is a line of its
own.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.cli import load_preset
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.feature_writer import Encode, write_features
from genaffect_jax.data.sources.procedural import ProceduralSource
from genaffect_jax.models.build import build_networks
from genaffect_jax.training.denoiser.features import call_size, make_encode

_EACH = 8  # images of a person
_IN_FLIGHT = 3  # calls of the networks alone that are dispatched at a time


def main(
    config: Path = Path("configs/avatar_s.py"),
    images: int = 4000,
    workers: int = 2,
    image_size: int | None = None,
    call: int | None = None,
) -> None:
    """Measures rendering, the networks, and both together.

    Args:
        config: Preset of a denoiser.
        images: Images to render and encode.
        workers: Processes that render; 0 renders in threads of this process.
        image_size: Side of the images, in pixels; the preset's when left out.
        call: Images per device and call of the networks; as in training when left out.
    """
    run = _resized(load_preset(config, DenoiserRun), image_size)
    side, devices = run.data.image_size, jax.local_devices()
    start = time.perf_counter()
    source = ProceduralSource(side, -(-images // _EACH), _EACH)
    images = len(source.examples)
    print(f"source: {images} images of {side} x {side} pixels, made in {time.perf_counter() - start:.1f} s")
    batch_size = (call or call_size(run)) * len(devices)

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        nothing = _Timed(lambda batch: {"embedding": np.zeros((len(batch), 1), np.float16)})
        begun = time.perf_counter()
        write_features(source, target / "rendering.npy", nothing, batch_size, "none", workers)
        nothing.report(f"rendering, {workers} workers", images, batch_size, begun)

        autoencoder = build_networks(run.model, run.train.compute_dtype)[1]
        faces = install_encoders(RunDir(target), run.model)
        encode = make_encode(run, faces, autoencoder, jax.jit(autoencoder.init)(jax.random.key(0)), devices)
        black = np.zeros((batch_size, side, side, 3), np.uint8)
        what = f"{len(devices)} {devices[0].platform} device(s), calls of {batch_size}"
        _measure_networks(encode, black, min(images, 40 * batch_size), what)

        jax.clear_caches()  # training compiles beside the start of the workers
        timed = _Timed(encode)
        begun = time.perf_counter()
        write_features(
            source, target / "writing.npy", timed, batch_size, "random", workers, prepare=lambda: encode(black)
        )
        timed.report(f"writing, {workers} workers, {what}", images, batch_size, begun)


class _Timed:
    """Notes when the first call of an encoder is over."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._first = 0.0

    def __call__(self, batch: np.ndarray) -> Any:
        results = self._encode(batch)
        if not self._first:
            jax.block_until_ready(results)
            self._first = time.perf_counter()
        return results

    def report(self, what: str, images: int, batch_size: int, begun: float) -> None:
        """Prints the line of a measurement that began at `begun` and has just ended."""
        now = time.perf_counter()
        rest = images - batch_size
        later = f"{rest / (now - self._first):.0f}" if rest > 0 else "-"
        print(
            f"{what}: {images / (now - begun):.0f} images/s in {now - begun:.1f} s; first call done after "
            f"{self._first - begun:.1f} s, {later} images/s from then on"
        )


def _measure_networks(encode: Callable[[np.ndarray], Any], black: np.ndarray, images: int, what: str) -> None:
    begun = time.perf_counter()
    jax.block_until_ready(encode(black))
    first = time.perf_counter()
    calls = -(-images // len(black))
    running: deque[Any] = deque()
    for _ in range(calls):
        running.append(encode(black))
        if len(running) == _IN_FLIGHT:
            jax.device_get(running.popleft())
    jax.device_get(list(running))
    seconds = time.perf_counter() - first
    print(f"networks, {what}: {calls * len(black) / seconds:.0f} images/s; compiled in {first - begun:.1f} s")


def _resized(run: DenoiserRun, side: int | None) -> DenoiserRun:
    if side is None:
        return run
    mmdit = run.model.mmdit
    tokens = side // run.model.autoencoder.downsample
    mmdit = dataclasses.replace(mmdit, sample_size=tokens, pos_embed_max_size=max(tokens, mmdit.pos_embed_max_size))
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, image_size=side),
        model=dataclasses.replace(run.model, mmdit=mmdit),
    )


if __name__ == "__main__":
    tyro.cli(main)
