"""Held-out people, and the composition of training sets: a reference and E targets of one person.

Both are functions of names, seeds and numbers alone. They do not depend on the order of files, on worker processes or
on earlier calls.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from genaffect_jax.data.sources.base import Example, Source
from genaffect_jax.errors import DataError

Pairs = Literal["cross", "self"]
# References of one training group.
REFERENCES_PER_GROUP = 1
# Folded into the seed, so that the order of people and the composition of sets have independent random numbers.
_ORDER, _COMPOSITION = 1, 2


def split_identities(source: Source, holdout: float, seed: int) -> tuple[list[str], list[str]]:
    """Splits the people of a source into those to train on and those held out, both sorted by name.

    A person is held out if a hash of (seed, name) is below `holdout`. The share is therefore met on average, and a
    person stays on the same side when others are added or removed. Exceptions: if no hash is below, the person with
    the smallest hash is held out; if all are, the person with the largest hash is trained on. In a source of one
    person, nobody is held out.

    Args:
        source: the images.
        holdout: share in [0, 1); 0 holds nobody out.
        seed: seed of the hash.

    Raises:
        ValueError: `holdout` lies outside [0, 1).
    """
    if not 0.0 <= holdout < 1.0:
        raise ValueError(f"holdout={holdout}: must lie in [0, 1)")
    place = {identity: _unit_hash(seed, identity) for identity in {p.identity for p in source.examples}}
    names = sorted(place)
    if holdout == 0.0 or len(names) < 2:
        return names, []
    held = {name for name in names if is_held_out(name, holdout, seed)} or {min(names, key=place.__getitem__)}
    if len(held) == len(names):
        held.remove(max(names, key=place.__getitem__))
    return [n for n in names if n not in held], [n for n in names if n in held]


def is_held_out(name: str, holdout: float, seed: int) -> bool:
    """The rule of `split_identities` for one person, without its exceptions, which depend on all the others."""
    return _unit_hash(seed, name) < holdout


@dataclass(frozen=True)
class SetIndices:
    """The images of one training set, as indices into the source."""

    identity: int
    """Place of the person in the loader's list of people."""
    reference: int
    targets: tuple[int, ...]


class GroupSampler:
    """The endless sequence of training sets, by number: `sampler[n]` is always the same set.

    Set n belongs to epoch `n // people`. Every epoch visits every person once, in its own order. Reference and targets
    show different expressions (expression vectors) of one person, chosen with the key (seed, epoch, index in the
    epoch). If a person has fewer than E + 1 different expressions, the targets show all others than the reference's,
    some repeatedly, and never the reference's. Of several images with the same expression, one is chosen.

    Args:
        images: the source's examples.
        identities: the people to choose from; their order is the numbering of `SetIndices.identity`.
        expressions_per_set: targets E of a set.
        seed: at least 0.
        pairs: `self` makes the target its own reference; E is 1 then.

    Raises:
        DataError: no people, a name twice, a name without images, or a person with only one expression.
        ValueError: `expressions_per_set` below 1, or not 1 with `pairs` self, or a negative seed.
    """

    def __init__(
        self,
        images: Sequence[Example],
        identities: Sequence[str],
        expressions_per_set: int,
        seed: int,
        pairs: Pairs = "cross",
    ) -> None:
        if expressions_per_set < 1 or (pairs == "self" and expressions_per_set > 1):
            allowed = "at least 1" if pairs == "cross" else "1 with pairs self"
            raise ValueError(f"expressions_per_set={expressions_per_set}: must be {allowed}")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0")
        if not identities or len(set(identities)) != len(identities):
            raise DataError(f"{len(identities)} people, {len(set(identities))} different: need at least one, each once")
        self._expressions_per_set = expressions_per_set
        self._seed = seed
        self._pairs = pairs
        wanted = set(identities)
        grouped: dict[str, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, image in enumerate(images):
            if image.identity in wanted:
                grouped[image.identity][image.expression_key].append(index)
        few = [name for name in identities if len(grouped[name]) < 2]
        if few:
            raise DataError(
                f"people with fewer than 2 different expressions: {', '.join(few[:5])}"
                f"{f' and {len(few) - 5} more' if len(few) > 5 else ''}; reference and target must differ"
            )
        # [person][expression] -> image indices
        self._groups = [list(grouped[name].values()) for name in identities]
        self._last_order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> SetIndices:
        epoch, index = divmod(number, len(self._groups))
        person = int(self._order(epoch)[index])
        rng = np.random.default_rng([self._seed, _COMPOSITION, epoch, index])
        groups = self._groups[person]
        order = rng.permutation(len(groups))
        # np.resize repeats the other expressions in turn if there are fewer than E of them.
        chosen = [groups[i] for i in (order[0], *np.resize(order[1:], self._expressions_per_set))]
        reference, *targets = (group[rng.integers(len(group))] for group in chosen)
        return SetIndices(person, targets[0] if self._pairs == "self" else reference, tuple(targets))

    def _order(self, epoch: int) -> np.ndarray:
        # The last order is kept: sets are read in sequence, and a permutation of a large source takes milliseconds.
        if self._last_order is None or self._last_order[0] != epoch:
            rng = np.random.default_rng([self._seed, _ORDER, epoch])
            self._last_order = (epoch, rng.permutation(len(self._groups)))
        return self._last_order[1]


def _unit_hash(seed: int, name: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
