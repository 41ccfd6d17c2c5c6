"""The split of people and the composition of training sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from genaffect_jax.data.groups import GroupSampler, split_identities
from genaffect_jax.data.sources.base import Example
from genaffect_jax.errors import DataError


class Listed:
    """A source that is only looked at, never loaded."""

    width = 2

    def __init__(self, people: dict[str, list[int]]) -> None:
        self.examples = [
            Example(name, f"e{number}", np.array([number, 1], np.float32))
            for name, numbers in people.items()
            for number in numbers
        ]

    def load(self, index: int) -> np.ndarray:
        raise AssertionError("not to be loaded")

    def describe(self) -> str:
        return "listed"

    def fingerprint(self) -> str:
        return "listed"


def people(count: int, expressions: int = 6) -> Listed:
    return Listed({f"person {i}": list(range(expressions)) for i in range(count)})


def sampler(source: Listed, targets: int, seed: int = 0, names: list[str] | None = None) -> GroupSampler:
    return GroupSampler(source.examples, names or sorted({p.identity for p in source.examples}), targets, seed)


def test_a_person_keeps_their_side_when_people_are_added_or_reordered() -> None:
    train, held = split_identities(people(200), 0.2, seed=3)
    more_train, more_held = split_identities(people(300), 0.2, seed=3)
    assert set(train) <= set(more_train)
    assert set(held) <= set(more_held)
    turned = people(200)
    turned.examples = turned.examples[::-1]
    assert split_identities(turned, 0.2, seed=3) == (train, held)


def test_the_split_is_complete_near_its_share_and_follows_the_seed() -> None:
    source = people(1000, 1)
    train, held = split_identities(source, 0.2, seed=0)
    assert sorted(train + held) == sorted(p.identity for p in source.examples)
    assert 150 < len(held) < 250
    assert split_identities(source, 0.2, seed=1)[1] != held


@pytest.mark.parametrize(("count", "holdout"), [(2, 0.001), (2, 0.999), (5, 0.001), (5, 0.999)])
def test_both_sides_have_somebody_whatever_the_share(count: int, holdout: float) -> None:
    for seed in range(10):
        train, held = split_identities(people(count), holdout, seed)
        assert train
        assert held


def test_nobody_is_held_out_of_one_person_or_at_share_zero() -> None:
    assert split_identities(people(1), 0.5, 0)[1] == []
    assert split_identities(people(9), 0.0, 0)[1] == []
    with pytest.raises(ValueError, match="holdout=1"):
        split_identities(people(9), 1.0, 0)


def test_reference_and_targets_show_one_person_with_all_different_expressions() -> None:
    # Two images of every expression, so that different images alone are no proof.
    source = Listed({f"person {i}": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] for i in range(7)})
    sets = sampler(source, 4)
    for number in range(300):
        drawn = sets[number]
        shown = [source.examples[i] for i in (drawn.reference, *drawn.targets)]
        assert {p.identity for p in shown} == {f"person {drawn.identity}"}
        assert len({p.label for p in shown}) == 5


def test_with_too_few_expressions_targets_repeat_but_never_the_references() -> None:
    source = Listed({"a": [0, 1, 2], "b": [0, 1]})
    sets = sampler(source, 5)
    for number in range(100):
        drawn = sets[number]
        reference = source.examples[drawn.reference].label
        targets = Counter(source.examples[i].label for i in drawn.targets)
        assert reference not in targets
        assert len(targets) == (2 if drawn.identity == 0 else 1)
        assert max(targets.values()) - min(targets.values()) <= 1


def test_every_epoch_visits_everybody_once_in_another_order() -> None:
    sets = sampler(people(23), 2)
    orders = [[sets[23 * epoch + i].identity for i in range(23)] for epoch in range(5)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


def test_every_expression_serves_as_reference_and_as_target_and_every_image_is_used() -> None:
    source = Listed({"a": [0, 0, 1, 2], "b": [0, 1, 1, 2]})
    sets = sampler(source, 1)
    drawn = [sets[i] for i in range(400)]
    references = Counter(d.reference for d in drawn)
    targets = Counter(d.targets[0] for d in drawn)
    assert set(references) == set(targets) == set(range(8))
    by_label = Counter(source.examples[i].label for i in references.elements())
    assert max(by_label.values()) < 1.5 * min(by_label.values())


def test_sets_are_a_function_of_seed_and_number_alone() -> None:
    source = people(11)
    forward = [sampler(source, 3)[i] for i in range(60)]
    other = sampler(source, 3)
    assert [other[i] for i in reversed(range(60))] == forward[::-1]
    assert [sampler(source, 3, seed=1)[i] for i in range(60)] != forward


def test_people_who_cannot_make_a_set_are_refused_by_name() -> None:
    source = Listed({"ann": [0, 1], "bob": [2, 2], "cy": [0]})
    with pytest.raises(DataError, match="bob, cy"):
        sampler(source, 1)
    with pytest.raises(DataError, match="dora"):
        sampler(source, 1, names=["ann", "dora"])
    with pytest.raises(DataError, match="need at least one"):
        GroupSampler(source.examples, [], 1, 0)
    with pytest.raises(DataError, match="each once"):
        GroupSampler(source.examples, ["ann", "ann"], 1, 0)
    with pytest.raises(ValueError, match="expressions_per_set=0"):
        sampler(source, 0, names=["ann"])


def test_in_self_pairs_every_target_is_its_own_reference_and_the_targets_are_those_of_cross_pairs() -> None:
    source = people(5)
    names = sorted({p.identity for p in source.examples})
    cross, same = (GroupSampler(source.examples, names, 1, 0, pairs) for pairs in ("cross", "self"))
    for number in range(20):
        assert same[number].reference == same[number].targets[0]
        assert cross[number].reference != cross[number].targets[0]
        assert same[number].targets == cross[number].targets
    with pytest.raises(ValueError, match="expressions_per_set=2: must be 1 with pairs self"):
        GroupSampler(source.examples, names, 2, 0, "self")
