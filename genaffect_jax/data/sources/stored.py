"""Procedural avatars rendered once, by several processes, into a memory-mapped file that several trainings share.

Every image shows its person in other clothes and before another background (`avatars.wardrobe`), so that clothes do not
identify people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from genaffect_jax.avatars import Identity, render, sample_identity
from genaffect_jax.avatars.wardrobe import redress
from genaffect_jax.data.sources.base import Example, count_text
from genaffect_jax.data.sources.procedural import examples_of
from genaffect_jax.data.worker_processes import starting_workers, submit, worker_pool
from genaffect_jax.errors import DataError
from genaffect_jax.io.atomic import new_folder
from genaffect_jax.io.progress import progress_bar

_PIXELS, _VECTORS, _NAMES = "images.npy", "expressions.npy", "names.json"
_WARDROBE = 11  # folded into the seed that chooses whose clothes an image shows
_PEOPLE_PER_TASK = 8


@dataclass(frozen=True)
class AvatarSettings:
    """Everything that decides the stored avatars; the fields are those of `config.DataConfig`."""

    image_size: int
    identities: int
    expressions_per_identity: int
    pose_scale: float


class StoredSource:
    """A source of the images that `store_avatars` rendered.

    Args:
        folder: the result of `store_avatars`.

    Raises:
        DataError: the folder is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._pixels = np.load(folder / _PIXELS, mmap_mode="r")
            vectors = np.load(folder / _VECTORS)
            names = json.loads((folder / _NAMES).read_text())
        except (OSError, ValueError) as e:
            raise DataError(f"{folder}: not readable as stored avatars ({e}); delete it and it is made again") from e
        if not len(self._pixels) == len(vectors) == len(names):
            raise DataError(
                f"{folder}: {len(self._pixels)} images, {len(vectors)} expressions, {len(names)} names; "
                "delete it and it is made again"
            )
        self._images = tuple(Example(who, label, v) for (who, label), v in zip(names, vectors, strict=True))

    def __reduce__(self) -> tuple[type[StoredSource], tuple[Path]]:
        return StoredSource, (self._folder,)

    @property
    def examples(self) -> Sequence[Example]:
        """All images, person by person."""
        return self._images

    @property
    def width(self) -> int:
        """Numbers in one expression vector, W."""
        return len(self._images[0].expression)

    def load(self, index: int) -> UInt8[np.ndarray, "S S 3"]:
        """A copy of one image."""
        return np.array(self._pixels[index])

    def describe(self) -> str:
        """One line for users."""
        side = self._pixels.shape[1]
        return f"stored avatars, redressed: {count_text(self.examples)}, {side} x {side} pixels"

    def fingerprint(self) -> str:
        """Digest of the folder's name, which holds a digest of the settings and of probe images."""
        return hashlib.sha256(self._folder.name.encode()).hexdigest()


def store_avatars(settings: AvatarSettings, path: Path, workers: int) -> Path:
    """Renders all images into a folder, or finds the folder that an earlier run rendered.

    Person i is `sample_identity(i)` with the expressions of `ProceduralSource`; each image wears the clothes and
    has the background of another person, chosen by its place. The name of the result holds a digest of the settings
    and of a few images, and appears when it is complete.

    Args:
        settings: what to render.
        path: where to write; `avatars` becomes the folder `avatars-<digest>` beside it.
        workers: processes that render; 0 renders in this one. The images do not depend on it.

    Returns:
        The folder, for `StoredSource`.

    Raises:
        DataError: a worker process was killed.
    """
    final = path.with_name(f"{path.name}-{_digest(settings)}")
    if final.exists():
        return final
    try:
        with new_folder(final) as partial:
            _render_into(partial, settings, workers)
    except OSError:
        if not final.exists():  # else another run has just finished the same images
            raise
    return final


def _render_into(folder: Path, settings: AvatarSettings, workers: int) -> None:
    each, people = settings.expressions_per_identity, settings.identities
    shape = (people * each, settings.image_size, settings.image_size, 3)
    np.lib.format.open_memmap(folder / _PIXELS, "w+", np.uint8, shape).flush()
    names: list[list[str]] = [[] for _ in range(people * each)]
    vectors: list[np.ndarray] = [np.empty(0)] * (people * each)
    tasks = [(settings, folder, p, min(_PEOPLE_PER_TASK, people - p)) for p in range(0, people, _PEOPLE_PER_TASK)]
    with progress_bar("rendering avatars", people * each) as step, _results(tasks, workers) as results:
        for first, shown in results:
            for place, example in enumerate(shown, first):
                names[place], vectors[place] = [example.identity, example.label], example.expression
            step(len(shown))
    np.save(folder / _VECTORS, np.stack(vectors).astype(np.float32))
    (folder / _NAMES).write_text(json.dumps(names))


def render_redressed(
    person: int, vector: Float32[np.ndarray, " W"], wardrobe: int, size: int
) -> UInt8[np.ndarray, "S S 3"]:
    """Person number `person` with an expression, in the clothes and before the background of person `wardrobe`."""
    return render(redress(sample_identity(person), sample_identity(wardrobe)), vector, size)


_Task = tuple[AvatarSettings, Path, int, int]


def _render_people(task: _Task) -> tuple[int, list[Example]]:
    """Renders some people into the file; returns the place of the first image, and the examples."""
    settings, folder, first, count = task
    each = settings.expressions_per_identity
    pixels = np.lib.format.open_memmap(folder / _PIXELS, "r+")
    shown: list[Example] = []
    for person in range(first, first + count):
        identity = sample_identity(person)
        for place, image in enumerate(examples_of(person, each, settings.pose_scale)):
            dressed = redress(identity, _somebody(person, place))
            pixels[person * each + place] = render(dressed, image.expression, settings.image_size)
            shown.append(image)
    return first * each, shown


def _somebody(person: int, place: int) -> Identity:
    return sample_identity(int(np.random.default_rng([_WARDROBE, person, place]).integers(2**31)))


def _digest(settings: AvatarSettings) -> str:
    """Digest of the settings and of the pixels of three images; another renderer has another digest."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for person in (0, 1, 2):
        image = examples_of(person, 2, settings.pose_scale)[1]
        digest.update(render(redress(sample_identity(person), _somebody(person, 1)), image.expression, 64).tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _results(tasks: list[_Task], workers: int) -> Iterator[Iterator[tuple[int, list[Example]]]]:
    if workers == 0:
        yield map(_render_people, tasks)
        return
    try:
        with worker_pool(workers) as pool:
            with starting_workers():
                rendering = [submit(pool, _render_people, task) for task in tasks]
            yield (done.result() for done in as_completed(rendering))
    except BrokenProcessPool as e:
        raise DataError(
            f"rendering avatars: a worker process was killed ({e}). If the machine runs out of memory, render with "
            "fewer workers"
        ) from e
