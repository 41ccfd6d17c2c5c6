"""The input pipeline: an endless, exactly restorable stream of batches; worker processes (grain) load pixels."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.example_table import Column, example_table, gather
from genaffect_jax.data.groups import GroupSampler, Pairs
from genaffect_jax.data.sources.base import Source, examples_digest
from genaffect_jax.data.worker_processes import describe_shared_memory, init_worker, starting_workers
from genaffect_jax.errors import DataError
from genaffect_jax.io.output import PlainConsole, print_plainly
from genaffect_jax.parallel.processors import usable_processors

Batch = dict[str, np.ndarray]
# Batches that each worker process keeps ready; training reads one at a time, so more would only need memory.
_READY = 2
# More worker processes are not started unless `workers` says so: each takes memory and some seconds to start.
_MOST_WORKERS = 16
# Consecutive starts of the worker processes without a batch after which the run ends.
_MOST_STARTS = 3
# Part of grain's message about a killed worker process; it checks every second.
_WORKER_DIED = "Worker process was terminated unexpectedly"


def make_loader(
    source: Source,
    identities: Sequence[str],
    *,
    batch_size: int,
    expressions_per_set: int,
    seed: int,
    workers: int | None,
    shard_index: int = 0,
    num_shards: int = 1,
    prompts: Int[np.ndarray, " images"] | None = None,
    by_index: bool = False,
    pairs: Pairs = "cross",
) -> Loader:
    """The stream of training batches of one process.

    Batch k of the whole run holds the sets `k * batch_size` to `(k + 1) * batch_size - 1` of
    `data.groups.GroupSampler`. This process loads one of `num_shards` equal slices of it. The stream is a function of
    the source, `identities`, `batch_size`, `expressions_per_set`, `seed` and `pairs`; `workers` and the number of
    processes do not change it.

    Args:
        source: images, or their cached features; with face embeddings, batches hold `embedding`.
        identities: people to choose from; batches number them in this order.
        batch_size: sets G per batch over all processes.
        expressions_per_set: targets E per set.
        seed: at least 0.
        workers: worker processes of this process; 0 loads in this process, on demand. None chooses, see
            `automatic_workers`.
        shard_index: slice of every batch that this process loads.
        num_shards: number of slices.
        prompts: row of the prompt table for each image of the source; with it, batches hold `prompt`.
        by_index: batches are the second argument of `data.example_table.gather` instead of its result, and no image is
            loaded and no worker started.
        pairs: whether the reference shows another expression than the targets, or is the target.

    Returns:
        An iterator of batches with `get_state`, `set_state` and `close`.

    Raises:
        DataError: a person is unknown or has only one expression, or there is no person.
        ValueError: `batch_size` does not divide by `num_shards`, a number is out of range, or `prompts` has not one
            entry per image.
    """
    if batch_size < 1 or num_shards < 1 or batch_size % num_shards:
        raise ValueError(f"batch_size={batch_size}: must be a positive multiple of num_shards={num_shards}")
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index={shard_index}: must lie in 0..{num_shards - 1}")
    if workers is None:
        workers = automatic_workers(source)
    if workers < 0:
        raise ValueError(f"workers={workers}: must be at least 0")
    if prompts is not None and len(prompts) != len(source.examples):
        raise ValueError(f"prompts: {len(prompts)} rows for {len(source.examples)} images")
    sampler = GroupSampler(source.examples, identities, expressions_per_set, seed, pairs)
    stream = {
        "seed": seed,
        "batch_size": batch_size,
        "expressions_per_set": expressions_per_set,
        "identities": sha256("\0".join(identities).encode()).hexdigest(),
        "images": examples_digest(source.examples),
    }
    if pairs != "cross":  # positions that were saved before there was a choice have no entry
        stream["pairs"] = pairs
    rows = batch_size // num_shards
    batches = _Batches(source, sampler, batch_size, shard_index * rows, rows, prompts, by_index)
    return Loader(batches, 0 if by_index else workers, stream)


def automatic_workers(source: Source) -> int:
    """Worker processes for a source: none for cached latents, which are copied from a file; for pixels one for each
    processor of this process but one, at least 1 and at most `_MOST_WORKERS`."""
    if isinstance(source, CachedFeatures) and "latents" in source.columns:
        return 0
    return min(max(usable_processors() - 1, 1), _MOST_WORKERS)


class Loader(Iterator[Batch]):
    """An endless iterator of batches; make it with `make_loader` and `close` it when done.

    A batch is a dictionary of numpy arrays; their keys, shapes and types are those of `training.denoiser.batch`, with G
    the number of this process's sets. `prompt` is there with `prompts`, `embedding` with cached face embeddings. With
    `by_index`, `reference` and `target` are the images' indices, int32, beside `identity`.
    """

    def __init__(self, batches: _Batches, workers: int, stream: dict[str, Any]) -> None:
        self._batches = batches
        self._workers = workers
        self._stream = stream
        self._next = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        batch = self._from_workers() if self._workers else self._batches[self._next]
        self._next += 1
        return batch

    def _from_workers(self) -> Batch:
        starts = 0
        while True:
            try:
                # Workers pass arrays in shared memory, which must not outlive the iterator, so they are copied.
                return {name: np.array(array, subok=False) for name, array in self._fetch().items()}
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.ENOMEM):
                    raise
                raise DataError(
                    f"batch {self._next}: {describe_shared_memory()} is full: worker processes hand over their batches "
                    "there. Give it more room (docker run --shm-size=8g), or lower data.workers; 0 loads in the main "
                    "process and needs none"
                ) from e
            except RuntimeError as e:
                if _WORKER_DIED not in str(e):
                    raise
                starts += 1
                self.close()  # all of them; the number of the batch alone decides its content
                killed = "a worker process of the data pipeline was killed"
                if starts == _MOST_STARTS:
                    raise DataError(
                        f"batch {self._next}: {killed}, {starts} times in a row ({e}). If the machine runs out of "
                        f"memory, or {describe_shared_memory()} is full, lower data.workers; 0 loads in the main "
                        "process"
                    ) from e
                print_plainly(
                    PlainConsole(), f"warning: {killed}; all restart at batch {self._next}, in the same order"
                )

    def _fetch(self) -> Batch:
        if self._iterator is not None:
            return next(self._iterator)
        batches = grain.MapDataset.source(self._batches)[self._next :]
        # No reading threads: rendering and decoding keep a core busy, and worker processes read ahead anyway.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        workers = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_READY)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags; this program's options are tyro's
        self._iterator = iter(batches.to_iter_dataset(options).mp_prefetch(workers, init_worker))
        with starting_workers():
            return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position as JSON values: the number of the next batch, and what decides the stream."""
        return {"next_batch": self._next, "stream": dict(self._stream)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where `get_state` was called, also with another number of workers or processes.

        Raises:
            DataError: the state belongs to another stream (other images, people, seed, batch or set size).
        """
        if not isinstance(state, dict) or not {"next_batch", "stream"} <= set(state):
            raise DataError(f"loader state: expected next_batch and stream, found {state!r:.200}")
        changed = {k: (state["stream"].get(k), v) for k, v in self._stream.items() if state["stream"].get(k) != v}
        if changed:
            what = ", ".join(f"{k} was {str(old)[:12]} and is {str(new)[:12]}" for k, (old, new) in changed.items())
            raise DataError(f"loader state: saved from another stream of batches ({what}); it cannot be continued")
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stops the worker processes; a later `next` restarts them."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class _Batches:
    """Random access to one process's slice of every batch; pickled into the workers."""

    def __init__(
        self,
        source: Source,
        sampler: GroupSampler,
        batch_size: int,
        first_row: int,
        rows: int,
        prompts: Int[np.ndarray, " images"] | None,
        by_index: bool,
    ) -> None:
        self._source = source
        self._sampler = sampler
        self._batch_size = batch_size
        self._first_row = first_row
        self._rows = rows
        self._prompts = prompts
        self._by_index = by_index

    def __getstate__(self) -> dict[str, Any]:
        # Every process makes its own table: pickled, it would hold the cached features and not their file's name.
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    @cached_property
    def _table(self) -> dict[str, Column]:
        return example_table(self._source, self._prompts)

    def __len__(self) -> int:
        return sys.maxsize  # endless

    def __getitem__(self, number: int) -> Batch:
        first = int(number) * self._batch_size + self._first_row
        sets = [self._sampler[first + row] for row in range(self._rows)]
        indices = {
            "reference": np.array([[s.reference] for s in sets], np.int32),
            "target": np.array([s.targets for s in sets], np.int32),
            "identity": np.array([s.identity for s in sets], np.int32),
        }
        return indices if self._by_index else gather(self._table, indices)
