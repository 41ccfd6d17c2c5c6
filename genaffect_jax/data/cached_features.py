"""Features of frozen networks for every image of a source, computed once before training, in a memory-mapped file."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Shaped, UInt8

from genaffect_jax.data.sources.base import Example, Source
from genaffect_jax.errors import DataError
from genaffect_jax.io.atomic import new_file
from genaffect_jax.io.progress import progress_bar

# Features and their number of dimensions: the autoencoder's latents [h, w, c], the face embedding [F] of an identity
# encoder, the expression vector [W] of an expression encoder.
FIELDS: dict[str, int] = {"latents": 3, "embedding": 1, "expression": 1}
Encode = Callable[[UInt8[np.ndarray, "B S S 3"]], Mapping[str, np.ndarray]]


def write_features(
    source: Source, path: Path, encode: Encode, batch_size: int, fingerprint: str, workers: int = 0
) -> Path:
    """Encodes every image of a source into one float16 file, or finds the file that an earlier run wrote.

    The file's name holds a digest of `source.fingerprint()` and `fingerprint`, and the file appears only when it is
    complete. A file of this name therefore belongs to these images and networks. Files of other images or networks are
    not touched.

    Args:
        source: images with pixels.
        path: where to write; `features.npy` becomes `features-<digest>.npy` beside it.
        encode: uint8 `[B, S, S, 3]` to some of `FIELDS`, each `[B, ...]`; always called with B = `batch_size`.
        batch_size: images per call of `encode`; the last batch is filled up with copies of its last image.
        fingerprint: identifies the networks; other networks need another text.
        workers: processes that load the images; 0 loads in threads of this process, which is enough for image files
            but not for rendering, which holds the GIL.

    Returns:
        The file, an `.npy` of one row per image, in the order of `source.examples`; a row is a record of the fields.

    Raises:
        DataError: an image cannot be read, or `encode` returns other fields or shapes, or numbers outside the range of
            float16.
        ValueError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    digest = hashlib.sha256(f"{source.fingerprint()} {fingerprint}".encode()).hexdigest()[:16]
    final = path.with_name(f"{path.stem}-{digest}.npy")
    if final.exists():
        _open(final, len(source.examples))
        return final
    with new_file(final) as partial:
        _encode_into(partial, source, encode, batch_size, workers)
    return final


@dataclass(frozen=True)
class MeasuredImage(Example):
    """An example whose expression vector an encoder computed from its pixels."""

    @property
    def expression_key(self) -> bytes:
        """The label, as measured vectors are never equal."""
        return self.label.encode()


class CachedFeatures:
    """The examples of another source with cached features.

    Latents replace pixels, and vectors of an expression encoder replace the labels' vectors. Everything that the file
    does not hold comes from the source.

    Args:
        source: the source that was encoded.
        path: the file that `write_features` returned; every process maps it into memory.

    Raises:
        DataError: the file does not hold one row per image.
    """

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self._path = path
        self._map()

    def _map(self) -> None:
        self._rows = _open(self._path, len(self._source.examples))
        self._fields = self._rows.dtype.names or ()
        self._images = self._source.examples
        if "expression" in self._fields:
            vectors = np.asarray(self._rows["expression"], np.float32)
            self._images = tuple(
                MeasuredImage(p.identity, p.label, v) for p, v in zip(self._source.examples, vectors, strict=True)
            )

    def __getstate__(self) -> dict[str, object]:
        return {"_source": self._source, "_path": self._path}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._map()

    @property
    def examples(self) -> Sequence[Example]:
        """The examples of the encoded source."""
        return self._images

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        return self._rows.dtype["expression"].shape[0] if "expression" in self._fields else self._source.width

    @property
    def columns(self) -> dict[str, Float16[np.ndarray, "N ..."]]:
        """What the file holds, by the names of `FIELDS`: views of the mapped file, one row per image."""
        rows = np.asarray(self._rows)
        return {name: rows[name] for name in self._fields}

    def load(self, index: int) -> Shaped[np.ndarray, "h w c"]:
        """A copy of one image's latents (float16), or its pixels if the file holds none."""
        return np.array(self._rows[index]["latents"]) if "latents" in self._fields else self._source.load(index)

    def embedding(self, index: int) -> Float16[np.ndarray, " F"]:
        """A copy of one image's face embedding.

        Raises:
            DataError: the file holds none.
        """
        if "embedding" not in self._fields:
            raise DataError(f"{self._path}: holds no face embeddings (has {', '.join(self._fields)})")
        return np.array(self._rows[index]["embedding"])

    def describe(self) -> str:
        """One line for users."""
        kept = (f"{name} {' x '.join(map(str, self._rows.dtype[name].shape))}" for name in self._fields)
        return f"{', '.join(kept)} of {self._source.describe()}"

    def fingerprint(self) -> str:
        """Digest of the encoded source and of the networks, by the file's name."""
        return hashlib.sha256(f"{self._source.fingerprint()} {self._path.name}".encode()).hexdigest()


# The source of a worker process, which gets it once instead of with every image.
_worker_source: Source | None = None


def _claim_source(source: Source) -> None:
    global _worker_source
    _worker_source = source


def _load_in_worker(index: int) -> UInt8[np.ndarray, "S S 3"]:
    assert _worker_source is not None
    return _worker_source.load(index)


def _encode_into(path: Path, source: Source, encode: Encode, batch_size: int, workers: int) -> None:
    count = len(source.examples)
    rows: np.memmap | None = None
    pool: Executor
    if workers:  # spawned, not forked: this process may run JAX's threads
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_claim_source, initargs=(source,))
    else:
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    read = _load_in_worker if workers else source.load

    def load(first: int) -> list:
        return [pool.submit(read, min(i, count - 1)) for i in range(first, first + batch_size)]

    with progress_bar("encoding images", count) as step:
        try:
            coming = load(0)
            for first in range(0, count, batch_size):
                images = np.stack([image.result() for image in coming])
                coming = load(first + batch_size) if first + batch_size < count else []  # read while encoding
                batch = {name: np.asarray(array) for name, array in encode(images).items()}
                if rows is None:
                    rows = np.lib.format.open_memmap(path, "w+", _row_type(batch), (count,))
                if batch.keys() != set(rows.dtype.names or ()):
                    raise DataError(f"encode returned {sorted(batch)}, before {sorted(rows.dtype.names or ())}")
                kept = min(batch_size, count - first)
                for name, array in batch.items():
                    if array.shape != (batch_size, *rows.dtype[name].shape):
                        raise DataError(
                            f"encode returned {name} of shape {array.shape}, "
                            f"expected {(batch_size, *rows.dtype[name].shape)}"
                        )
                    with np.errstate(over="ignore"):
                        half = array.astype(np.float16)
                    if not np.isfinite(half).all():
                        raise DataError(
                            f"{name} of images {first}..: not finite in float16 (largest {np.abs(array).max()})"
                        )
                    rows[name][first : first + kept] = half[:kept]
                step(kept)
        finally:
            pool.shutdown(cancel_futures=True)
    if rows is None:
        raise DataError("the source has no images to encode")
    rows.flush()


def _row_type(batch: Mapping[str, np.ndarray]) -> np.dtype:
    for name, array in batch.items():
        if name not in FIELDS or array.ndim != FIELDS[name] + 1:
            wanted = ", ".join(f"{field} of {axes + 1} dimensions" for field, axes in FIELDS.items())
            raise DataError(f"encode returned {name} of shape {array.shape}; it may return {wanted}")
    return np.dtype([(name, np.float16, array.shape[1:]) for name, array in batch.items()])


def _open(path: Path, count: int) -> np.memmap:
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: not readable as encoded images ({e}); delete it and it is made again") from e
    names = rows.dtype.names or ()
    if not names or not set(names) <= FIELDS.keys() or rows.shape != (count,):
        raise DataError(
            f"{path}: {rows.dtype} of shape {rows.shape}, expected {count} rows of {', '.join(FIELDS)}; "
            "delete it and it is made again"
        )
    return rows
