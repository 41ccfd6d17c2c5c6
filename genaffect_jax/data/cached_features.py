"""Features of frozen networks for every image of a source, computed once before training, in a memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Shaped

from genaffect_jax.data.sources.base import Example, Source
from genaffect_jax.errors import DataError

# Features and their number of dimensions: the autoencoder's latents [h, w, c], the face embedding [F] of an identity
# encoder, the expression vector [W] of an expression encoder.
FIELDS: dict[str, int] = {"latents": 3, "embedding": 1, "expression": 1}


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
        path: the file that `data.feature_writer.write_features` returned; every process maps it into memory.

    Raises:
        DataError: the file does not hold one row per image.
    """

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self._path = path
        self._map()

    def _map(self) -> None:
        self._rows = open_rows(self._path, len(self._source.examples))
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

    def describe(self) -> str:
        """One line for users."""
        kept = (f"{name} {' x '.join(map(str, self._rows.dtype[name].shape))}" for name in self._fields)
        return f"{', '.join(kept)} of {self._source.describe()}"

    def fingerprint(self) -> str:
        """Digest of the encoded source and of the networks, by the file's name."""
        return hashlib.sha256(f"{self._source.fingerprint()} {self._path.name}".encode()).hexdigest()


def open_rows(path: Path, count: int) -> np.memmap:
    """Maps a file of cached features into memory: one record of some of `FIELDS` per image.

    Raises:
        DataError: the file is not readable, or does not hold `count` rows of these fields.
    """
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
