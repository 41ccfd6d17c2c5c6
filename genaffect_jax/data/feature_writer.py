"""Writes the features of frozen networks for every image of a source into one file.

Three kinds of work go on at once: workers load images straight into memory that they share with this process, the
networks encode the call before, and this process checks and writes the results of calls that are done.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import pickle
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped, UInt8

from genaffect_jax.data.cached_features import FIELDS, open_rows
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.worker_processes import init_worker, starting_workers, submit, worker_pool
from genaffect_jax.errors import DataError
from genaffect_jax.io.atomic import new_file, remove_partial
from genaffect_jax.io.output import PlainConsole, print_plainly
from genaffect_jax.io.progress import progress_bar

Encode = Callable[[UInt8[np.ndarray, "B S S 3"]], Mapping[str, Any]]
"""Images to some of `FIELDS`, each `[B, ...]`: NumPy arrays, or arrays that convert to them and may still be being
computed, such as JAX's."""
# Images that a worker loads for one message: fewer would need more messages, more would fill a call more slowly.
_IMAGES_PER_TASK = 16
# Tasks that each worker has or waits for.
_TASKS_PER_WORKER = 2
# Calls of the networks that may be dispatched and not be done while the next one is: the device always has work.
_CALLS_IN_FLIGHT = 2
_MOST_THREADS = 8
_DIGITS = 16  # of the digest in a file's name


def write_features(
    source: Source,
    path: Path,
    encode: Encode,
    batch_size: int,
    fingerprint: str,
    workers: int = 0,
    prepare: Callable[[], object] | None = None,
) -> Path:
    """Encodes every image of a source into one float16 file, or finds the file that an earlier run wrote.

    The file's name holds a digest of `source.fingerprint()` and `fingerprint`, and the file appears only when it is
    complete. A file of this name therefore belongs to these images and networks. When it is complete, the files beside
    it of other images or networks, which earlier starts wrote, are removed, and a line on stderr says so. What a killed
    process left of this file is removed, so one process at a time may write it.

    Args:
        source: images with pixels.
        path: where to write; `features.npy` becomes `features-<digest>.npy` beside it.
        encode: see `Encode`; always called with B = `batch_size`, in order. The images are overwritten some calls
            later, but not before the results of the call were read.
        batch_size: images per call of `encode`; the last batch is filled up with copies of its last image.
        fingerprint: identifies the networks; other networks need another text.
        workers: processes that load the images; 0 loads in threads of this process, which is enough for image files
            but not for rendering, which holds the GIL.
        prepare: called once while the workers start, to compile for example; not called if the file exists.

    Returns:
        The file, an `.npy` of one row per image, in the order of `source.examples`; a row is a record of the fields.

    Raises:
        DataError: an image cannot be read, has another shape than the first or is not uint8; a worker process was
            killed; or `encode` returns other fields or shapes, or numbers outside the range of float16.
        OSError: the file cannot be written.
        ValueError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    digest = hashlib.sha256(f"{source.fingerprint()} {fingerprint}".encode()).hexdigest()[:_DIGITS]
    final = path.with_name(f"{path.stem}-{digest}.npy")
    if final.exists():
        open_rows(final, len(source.examples))
        return final
    if not len(source.examples):
        raise DataError("the source has no images to encode")
    remove_partial(final)  # it may take as much room as the whole file
    with new_file(final, durable=True) as partial, _loaders(source, batch_size, workers) as images:
        _encode_into(partial, images, encode, prepare)
    _remove_stale(final, path)
    return final


def _remove_stale(final: Path, path: Path) -> None:
    """Removes the files of other digests."""
    ours = re.compile(rf"{re.escape(path.stem)}-[0-9a-f]{{{_DIGITS}}}\.npy")
    stale = sorted(file for file in final.parent.iterdir() if file != final and ours.fullmatch(file.name))
    freed = sum(file.stat().st_size for file in stale)
    for file in stale:
        file.unlink(missing_ok=True)
    if stale:
        print_plainly(
            PlainConsole(),
            f"{final.parent}: encoded images of earlier starts are of other images or networks and are removed "
            f"({', '.join(file.name for file in stale)}; {freed / 1e6:.1f} MB)",
        )


@dataclass(frozen=True)
class _Loading:
    """Loads images into slots, each of which holds the images of one call; lives in every worker."""

    source: Source
    slots: UInt8[np.ndarray, "slots B S S 3"]

    def load(self, slot: int, row: int, first: int, count: int) -> None:
        """Loads images `first` to `first + count - 1` into a slot, from `row` on."""
        shape = self.slots.shape[2:]
        for index in range(first, first + count):
            image = self.load_one(index)
            if image.shape != shape or image.dtype != np.uint8:
                raise DataError(
                    f"{self.name(index)}: {image.dtype} of shape {image.shape}, expected uint8 of shape {shape}, as "
                    f"{self.name(0)}"
                )
            self.slots[slot, row + index - first] = image

    def load_one(self, index: int) -> Shaped[np.ndarray, ...]:
        """One image; an error that is no DataError, which names its file, gets a note with the image's name."""
        try:
            return self.source.load(index)
        except DataError:
            raise
        except Exception as e:
            e.add_note(f"while loading {self.name(index)}")
            raise

    def name(self, index: int) -> str:
        """The image for people."""
        example = self.source.examples[index]
        return f"image {index} ({example.identity}, {example.label})"


# That of a worker process, which gets it once instead of with every task.
_in_worker: _Loading | None = None


def _start_worker(source: ctypes.Array, pixels: ctypes.Array, shape: tuple[int, ...]) -> None:
    init_worker()
    global _in_worker
    _in_worker = _Loading(pickle.loads(memoryview(source)), np.frombuffer(memoryview(pixels), np.uint8).reshape(shape))


def _load_in_worker(slot: int, row: int, first: int, count: int) -> None:
    assert _in_worker is not None
    _in_worker.load(slot, row, first, count)


@dataclass(frozen=True)
class _Loaders:
    """Workers that load all images of a source, in order, call by call."""

    count: int
    """Images of the source."""
    slots: UInt8[np.ndarray, "slots B S S 3"]
    """What is loaded: call k in slot k modulo their number."""
    pool: Executor
    """The workers."""
    work: Callable[[int, int, int, int], None]
    """`_Loading.load`, for the pool."""
    starting: Callable[[], AbstractContextManager[None]]
    """Context in which the pool may start workers."""

    @property
    def batch_size(self) -> int:
        """Images of one call."""
        return self.slots.shape[1]

    def begin(self, call: int) -> list[Future[None]]:
        """Begins to load the images of a call into its slot; nothing, if there is no such call."""
        first, slot = call * self.batch_size, call % len(self.slots)
        last = min(first + self.batch_size, self.count)
        with self.starting():
            return [
                submit(self.pool, self.work, slot, i - first, i, min(_IMAGES_PER_TASK, last - i))
                for i in range(first, last, _IMAGES_PER_TASK)
            ]

    def finish(self, call: int, loading: list[Future[None]]) -> tuple[UInt8[np.ndarray, "B S S 3"], int]:
        """Waits for the images of a call; returns the filled-up batch, and how many images it has."""
        for task in loading:
            task.result()
        images = self.slots[call % len(self.slots)]
        kept = min(self.batch_size, self.count - call * self.batch_size)
        images[kept:] = images[kept - 1]
        return images, kept


@contextmanager
def _loaders(source: Source, batch_size: int, workers: int) -> Iterator[_Loaders]:
    """Starts the workers, and ends them with the block.

    The shared memory has no name (`multiprocessing` unlinks its file as it makes it), so it cannot outlive the
    processes that have it, however they end.
    """
    count = len(source.examples)
    tasks = -(-count // _IMAGES_PER_TASK)
    parallel = min(workers or min(_MOST_THREADS, os.cpu_count() or 1), tasks)
    ahead = -(-_TASKS_PER_WORKER * parallel * _IMAGES_PER_TASK // batch_size)
    slots = min(_CALLS_IN_FLIGHT + 1 + ahead, -(-count // batch_size))
    shape = (slots, batch_size, *source.load(0).shape)
    made = (_in_processes if workers else _in_threads)(source, count, parallel, shape)
    with made as loaders:
        yield loaders


@contextmanager
def _in_processes(source: Source, count: int, workers: int, shape: tuple[int, ...]) -> Iterator[_Loaders]:
    context = multiprocessing.get_context("spawn")
    # Pickled once: with a hundred thousand examples it takes a second, and every process gets a copy.
    pickled = pickle.dumps(source)
    shared_source = context.RawArray(ctypes.c_ubyte, len(pickled))
    memoryview(shared_source).cast("B")[:] = pickled
    pixels = context.RawArray(ctypes.c_ubyte, int(np.prod(shape)))
    array = np.frombuffer(memoryview(pixels), np.uint8).reshape(shape)
    try:
        with worker_pool(workers, _start_worker, (shared_source, pixels, shape)) as pool:
            yield _Loaders(count, array, pool, _load_in_worker, starting_workers)
    except BrokenProcessPool as e:
        raise DataError(
            f"encoding images: a worker process was killed ({e}). If the machine runs out of memory, set "
            "data.workers=0, which loads in the main process"
        ) from e


@contextmanager
def _in_threads(source: Source, count: int, workers: int, shape: tuple[int, ...]) -> Iterator[_Loaders]:
    pool, array = ThreadPoolExecutor(workers), np.empty(shape, np.uint8)
    try:
        yield _Loaders(count, array, pool, _Loading(source, array).load, nullcontext)
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_into(path: Path, images: _Loaders, encode: Encode, prepare: Callable[[], object] | None) -> None:
    calls = -(-images.count // images.batch_size)
    loading = deque(images.begin(call) for call in range(len(images.slots)))
    if prepare is not None:
        prepare()
    running: deque[tuple[Mapping[str, Any], int]] = deque()
    with path.open("wb") as file, progress_bar("encoding images", images.count) as step:
        rows = _Rows(file, images.count)

        def collect() -> None:
            results, kept = running.popleft()
            rows.append(results, images.batch_size, kept)
            step(kept)

        for call in range(calls):
            batch, kept = images.finish(call, loading.popleft())
            running.append((encode(batch), kept))
            if len(running) > _CALLS_IN_FLIGHT:
                collect()
                # That call's slot is free, as nothing computes with its images any more.
                loading.append(images.begin(call - _CALLS_IN_FLIGHT + len(images.slots)))
        while running:
            collect()


class _Rows:
    """Rows of an `.npy` file; the first results tell its fields.

    Rows are written, not mapped into memory: on a full disk a mapped page would end the process (SIGBUS).
    """

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self._count = file, count
        self._type: np.dtype | None = None
        self._next = 0

    def append(self, results: Mapping[str, Any], batch_size: int, kept: int) -> None:
        """Writes the first `kept` images of a call's results, once they are computed; raises as `write_features`."""
        batch = {name: np.asarray(array) for name, array in results.items()}
        if self._type is None:
            self._type = _row_type(batch)
            header = {
                "descr": np.lib.format.dtype_to_descr(self._type),
                "fortran_order": False,
                "shape": (self._count,),
            }
            np.lib.format.write_array_header_1_0(self._file, header)
        names = self._type.names or ()
        if batch.keys() != set(names):
            raise DataError(f"encode returned {sorted(batch)}, before {sorted(names)}")
        rows = np.empty(kept, self._type)
        for name, array in batch.items():
            expected = (batch_size, *self._type[name].shape)
            if array.shape != expected:
                raise DataError(f"encode returned {name} of shape {array.shape}, expected {expected}")
            with np.errstate(over="ignore"):
                half = array.astype(np.float16, copy=False)
            if not np.isfinite(half).all():
                raise DataError(
                    f"{name} of images {self._next}..: not finite in float16 (largest {np.abs(array).max()})"
                )
            rows[name] = half[:kept]
        self._file.write(rows.view(np.uint8).data)
        self._next += kept


def _row_type(batch: Mapping[str, np.ndarray]) -> np.dtype:
    for name, array in batch.items():
        if name not in FIELDS or array.ndim != FIELDS[name] + 1:
            wanted = ", ".join(f"{field} of {axes + 1} dimensions" for field, axes in FIELDS.items())
            raise DataError(f"encode returned {name} of shape {array.shape}; it may return {wanted}")
    return np.dtype([(name, np.float16, array.shape[1:]) for name, array in batch.items()])
