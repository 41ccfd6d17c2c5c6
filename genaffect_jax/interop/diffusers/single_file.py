"""One-file checkpoints in the original layout, read as if they were diffusers folders.

Such a file holds a transformer under `model.diffusion_model.` (a file of a transformer alone has no prefix), in most
cases an autoencoder under `first_stage_model.`, and in some text encoders under `text_encoders.`, which are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genaffect_jax.errors import WeightsError, listed
from genaffect_jax.interop.diffusers.components import Component, Config
from genaffect_jax.interop.diffusers.original_layout import AUTOENCODER_LAYOUT, TRANSFORMER_LAYOUT, Layout, Original
from genaffect_jax.interop.diffusers.tensor_files import StoredTensors, open_file
from genaffect_jax.io.weight_file import WeightDType, misfits

TEXT_ENCODERS = "text_encoders."
_PREFIXES = (TRANSFORMER_LAYOUT.prefix, AUTOENCODER_LAYOUT.prefix, TEXT_ENCODERS)
_BARE_MARK = "joint_blocks."  # every transformer has such keys


class OriginalTensors:
    """The tensors of one network of a checkpoint, by their keys in diffusers (see `tensor_files.Tensors`)."""

    def __init__(self, stored: StoredTensors, prefix: str, originals: Mapping[str, Original]):
        """Args:
        stored: the file.
        prefix: prefix of the network's keys there.
        originals: the network's tensors, by their keys in the file without prefix; all are there in their shapes.
        """
        self._stored, self._prefix = stored, prefix
        self._places = {part: original for original in originals.values() for part in original.parts}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, WeightDType] = {}
        for part, original in self._places.items():
            rows, *rest = stored.shapes[prefix + original.key]
            rest = rest[:-2] if original.pointwise else rest
            self.shapes[part] = (rows // len(original.parts), *rest)
            self.dtypes[part] = stored.dtypes[prefix + original.key]

    def read(self, key: str) -> np.ndarray:
        """One tensor, in its stored type, as a new array."""
        original = self._places[key]
        name = self._prefix + original.key
        rows = original.rows(key, self._stored.shapes[name][0])
        return original.to_diffusers(self._stored.read_rows(name, rows))


@contextmanager
def open_single_file(path: Path, component: Component[Config, Any]) -> Iterator[tuple[Config, OriginalTensors]]:
    """Opens one network of a checkpoint; the configuration is inferred (see `inferred_configs`).

    Raises:
        WeightsError: the file is missing or damaged, or does not hold this network; keys or shapes are not exactly
            those of the network, a type of numbers is unknown, or a key belongs to no network (some are named).
    """
    assert component.original is not None
    assert component.infer is not None
    with open_file(path) as file:
        prefix = _prefix(set(file.keys()), component.original, path)
        own = {key: file for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118 (safe_open is no mapping)
        try:
            stored = StoredTensors(own)
            found = {key.removeprefix(prefix): shape for key, shape in stored.shapes.items()}
            config = component.infer(found)
        except WeightsError as e:
            raise WeightsError(f"{path}: under {prefix!r}: {e}") from e
        shapes = {key: piece.shape for key, piece in component.pieces(config).items()}
        originals = component.original.tensors(config, shapes)
        expected = {key: original.shape(shapes) for key, original in originals.items()}
        problems = misfits(
            {prefix + key: shape for key, shape in found.items()}, {prefix + key: s for key, s in expected.items()}
        )
        if problems:
            raise WeightsError(f"{path}: does not fit the network: {listed(problems)}")
        yield config, OriginalTensors(stored, prefix, originals)


def holds_autoencoder(path: Path) -> bool:
    """Whether a safetensors file has keys of an autoencoder in the original layout.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    with open_file(path) as file:
        return any(key.startswith(AUTOENCODER_LAYOUT.prefix) for key in file.keys())  # noqa: SIM118


def _prefix(keys: set[str], layout: Layout, path: Path) -> str:
    """The prefix of a network's keys; raises for keys of no network."""
    known = {key for key in keys if key.startswith(_PREFIXES)}
    if layout is TRANSFORMER_LAYOUT and not known and any(key.startswith(_BARE_MARK) for key in keys):
        return ""
    if not any(key.startswith(layout.prefix) for key in keys):
        raise WeightsError(f"{path}: no one-file checkpoint with this network: no key begins with {layout.prefix}")
    if keys > known:
        unknown = listed(sorted(keys - known), separator=", ")
        raise WeightsError(f"{path}: unknown {unknown}; keys must begin with {', '.join(_PREFIXES)}")
    return layout.prefix
