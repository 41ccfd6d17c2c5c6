"""The images of a training as columns, and how a batch is read from them by index.

`gather` is one function for columns on the host, which a batch is copied from, and for the same columns as arrays on
the devices, which a jitted program reads.

| column | shape | dtype | content |
|---|---|---|---|
| `image` | [N, h, w, c] or [N, S, S, 3] | float16 or uint8 | cached latents, or pixels, which are loaded one by one |
| `expression` | [N, W] | float32 | expression vectors |
| `embedding` | [N, F] | float16 | face embeddings, where they are cached |
| `prompt` | [N] | int32 | rows of the prompt table, for models that read prompts |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Shaped

from genaffect_jax.data.cached_features import CachedFeatures
from genaffect_jax.data.sources.base import Source


class Column(Protocol):
    """One entry per image: an array of any kind, or images that are loaded when they are read."""

    def __getitem__(self, indices: Any) -> Any: ...


def example_table(source: Source, prompts: Int[np.ndarray, " N"] | None = None) -> dict[str, Column]:
    """The columns of a source. Cached features stay in their memory-mapped file until they are read.

    Args:
        source: images, or their cached features.
        prompts: row of the prompt table for each image; None for models that read no prompts.
    """
    cached = source.columns if isinstance(source, CachedFeatures) else {}
    table: dict[str, Column] = {
        "image": cached.get("latents", _Pixels(source)),
        "expression": np.stack([example.expression for example in source.examples]).astype(np.float32),
    }
    if "embedding" in cached:
        table["embedding"] = cached["embedding"]
    if prompts is not None:
        table["prompt"] = np.asarray(prompts, np.int32)
    return table


def gather(table: Mapping[str, Column], indices: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of some training sets; its schema is that of `training.denoiser.batch`.

    Args:
        table: columns on the host, or all of them on the devices.
        indices: images as rows of the table, int32: `reference` [G, R] and `target` [G, E]; and `identity` [G].
    """
    reference, target = indices["reference"], indices["target"]
    batch = {
        "reference": table["image"][reference],
        "target": table["image"][target],
        "expression": table["expression"][target],
        "identity": indices["identity"],
    }
    if "prompt" in table:
        batch["prompt"] = table["prompt"][target]
    if "embedding" in table:
        batch["embedding"] = table["embedding"][reference]
    return batch


class _Pixels:
    """The images of a source as a column."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, indices: Int[np.ndarray, "G E"]) -> Shaped[np.ndarray, "G E h w c"]:
        return np.stack([np.stack([self._source.load(index) for index in row]) for row in indices.tolist()])
