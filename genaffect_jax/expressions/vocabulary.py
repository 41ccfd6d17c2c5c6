"""The 135 emotion words of Shaver et al. (1987) with their expression vectors, read from `words.json`.

`derive.py` computes the vectors. Only 18 words have a published action-unit pattern.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float

from genaffect_jax.expressions.action_units import expression_vector

# Least Euclidean distance between any two words, and between any word and the neutral face.
MINIMUM_DISTANCE = 0.3


@dataclass(frozen=True, eq=False)
class Word:
    """One emotion word.

    Attributes:
        name: the word, lower case.
        cluster: one of love, joy, surprise, anger, sadness, fear.
        subcluster: the sub-cluster's name, such as `"zest"`.
        vector: its expression vector, float32 `(WIDTH,)`, read-only.
        provenance: `"published"` if publications list the word's units (the intensities are this project's),
            `"derived"` if this project's rule decides the whole vector.
        source: the publications and their labels, or the rule's reason.
        dropped: published FACS units without a channel in the expression vector.
    """

    name: str
    cluster: str
    subcluster: str
    vector: Float[np.ndarray, " width"]
    provenance: Literal["published", "derived"]
    source: str
    dropped: tuple[int, ...]


@cache
def vocabulary() -> Mapping[str, Word]:
    """All 135 words by name, in the order of Shaver et al.'s clusters; read once, immutable."""
    text = resources.files("genaffect_jax.expressions").joinpath("words.json").read_text(encoding="utf-8")
    words = {}
    for record in json.loads(text)["words"]:
        vector = expression_vector(record["channels"])
        vector.setflags(write=False)
        words[record["name"]] = Word(
            name=record["name"],
            cluster=record["cluster"],
            subcluster=record["subcluster"],
            vector=vector,
            provenance=record["provenance"],
            source=record["source"],
            dropped=tuple(record["dropped"]),
        )
    return MappingProxyType(words)


@cache
def clusters() -> Mapping[str, tuple[str, ...]]:
    """The six clusters (love, joy, surprise, anger, sadness, fear) with their words, in order."""
    members: dict[str, tuple[str, ...]] = {}
    for word in vocabulary().values():
        members[word.cluster] = (*members.get(word.cluster, ()), word.name)
    return MappingProxyType(members)
