"""Latents of every picture of a source, encoded once before training and read back from one memory-mapped file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
from jaxtyping import Float16, UInt8

from genaffect_jax.data.pictures import DataError, Picture, Source
from genaffect_jax.data.progress import progress_bar


def write_latents(
    source: Source,
    path: Path,
    encode: Callable[[UInt8[np.ndarray, "B S S 3"]], np.ndarray],
    batch_size: int,
    fingerprint: str,
) -> Path:
    """Encodes every picture of a source into one float16 file, or finds the file that an earlier run wrote.

    The file's name holds a digest of `source.fingerprint()` and `fingerprint`, and a file gets its name only when it
    is whole: a file of this name is complete and belongs to these pictures and this encoder. Files of other pictures
    or encoders are left where they are.

    Args:
        source: pictures with pixels.
        path: where to write; `latents.npy` becomes `latents-<digest>.npy` beside it.
        encode: uint8 `[B, S, S, 3]` to latents `[B, h, w, c]`; always called with B = `batch_size`.
        batch_size: pictures per call of `encode`; the last batch is filled up with copies of its last picture.
        fingerprint: what the encoder is; another text means other latents.

    Returns:
        The file, an `.npy` of shape `[n, h, w, c]` in the order of `source.pictures`.

    Raises:
        DataError: a picture cannot be read, or `encode` returns another shape or numbers that float16 cannot hold.
        ValueError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    digest = hashlib.sha256(f"{source.fingerprint()} {fingerprint}".encode()).hexdigest()[:16]
    final = path.with_name(f"{path.stem}-{digest}.npy")
    if final.exists():
        _open(final, len(source.pictures))
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.stem}-{uuid4().hex}.npy")
    try:
        _encode_into(partial, source, encode, batch_size)
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)  # Ctrl-C included: a partial file can be large
    return final


class LatentSource:
    """The pictures of another source, with latents in place of pixels.

    Args:
        source: the source that was encoded.
        latents: the file that `write_latents` returned; it is mapped into memory, in every process by itself.

    Raises:
        DataError: the file does not hold one float16 latent `[h, w, c]` per picture.
    """

    def __init__(self, source: Source, latents: Path) -> None:
        self._source = source
        self._path = latents
        self._latents = _open(latents, len(source.pictures))

    def __getstate__(self) -> dict[str, object]:
        return {"_source": self._source, "_path": self._path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._latents = _open(self._path, len(self._source.pictures))

    @property
    def pictures(self) -> Sequence[Picture]:
        """The pictures of the encoded source."""
        return self._source.pictures

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        return self._source.width

    def load(self, index: int) -> Float16[np.ndarray, "h w c"]:
        """A copy of one picture's latents."""
        return np.array(self._latents[index])

    def describe(self) -> str:
        """One line for people."""
        return f"latents {' x '.join(map(str, self._latents.shape[1:]))} of {self._source.describe()}"

    def fingerprint(self) -> str:
        """Digest of the encoded source and of the encoder, by the file's name."""
        return hashlib.sha256(f"{self._source.fingerprint()} {self._path.name}".encode()).hexdigest()


def _encode_into(
    path: Path, source: Source, encode: Callable[[UInt8[np.ndarray, "B S S 3"]], np.ndarray], batch_size: int
) -> None:
    count = len(source.pictures)
    latents: np.memmap | None = None
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def load(first: int) -> list:
        return [pool.submit(source.load, min(i, count - 1)) for i in range(first, first + batch_size)]

    with progress_bar("encoding pictures", count) as step:
        try:
            coming = load(0)
            for first in range(0, count, batch_size):
                pictures = np.stack([picture.result() for picture in coming])
                coming = load(first + batch_size) if first + batch_size < count else []  # read while encoding
                batch = np.asarray(encode(pictures))
                if latents is None:
                    latents = np.lib.format.open_memmap(path, "w+", np.float16, (count, *batch.shape[1:]))
                if batch.ndim != 4 or batch.shape != (batch_size, *latents.shape[1:]):
                    raise DataError(f"latents: encode returned shape {batch.shape}, expected ({batch_size}, h, w, c)")
                with np.errstate(over="ignore"):
                    half = batch.astype(np.float16)
                if not np.isfinite(half).all():
                    raise DataError(
                        f"latents of pictures {first}..: not finite in float16 (largest {np.abs(batch).max()})"
                    )
                kept = min(batch_size, count - first)
                latents[first : first + kept] = half[:kept]
                step(kept)
        finally:
            pool.shutdown(cancel_futures=True)
    if latents is None:
        raise DataError("latents: the source has no pictures")
    latents.flush()


def _open(path: Path, count: int) -> np.memmap:
    try:
        latents = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: not readable as latents ({e}); delete it and it is made again") from e
    if latents.dtype != np.float16 or latents.ndim != 4 or len(latents) != count:
        raise DataError(
            f"{path}: {latents.dtype} of shape {latents.shape}, expected float16 [{count}, h, w, c]; "
            "delete it and it is made again"
        )
    return latents
