"""The collectives of a compiled program, read from its HLO text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|called_computations|branch_computations)="
    r"\{?((?:%?[\w.\-]+(?:, )?)+)\}?"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" = [su](?:32|64)\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+\w*)\[([\d,]*)\]")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUPS_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_GROUPS_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_CHAIN = re.compile(r'chain_id="(\d+)"')


@dataclass(frozen=True)
class Collective:
    """One collective of a program, as each device sees it."""

    kind: str
    """One of `KINDS`."""
    size: int
    """Bytes of the whole array: the result of a gather, the operand of a reduction or an exchange."""
    dtypes: frozenset[str]
    """Types of the arrays, as HLO names them (`bf16`, `f32`)."""
    devices: int
    """Number of participating devices; 0 where the text does not say."""
    times: int
    """Executions in one run of the program."""
    loop: bool = False
    """Whether it is in a loop whose length the text does not say; `times` then counts one iteration."""

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one run, by the ring (or pairwise) algorithms."""
        share = 1.0 if self.devices == 0 else (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.size * self.times


@dataclass(frozen=True)
class Total:
    """All collectives of one kind in one run."""

    count: int
    """Number of executions."""
    size: int
    """Bytes of their whole arrays."""
    sent: float
    """Bytes that each device sends."""
    loop: bool
    """Whether some are in loops of unknown length, of which one iteration is counted."""


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program (`Compiled.as_text()`), in the order of the text.

    A loop's collectives count once an iteration, where the text gives the number of iterations: in XLA's own note, or
    in a comparison of the counter with one constant. Two peculiarities of TPU programs are resolved: a reduce-scatter
    is written as an all-reduce and a slice in a fusion, and an asynchronous collective appears in every fusion that it
    overlaps with.
    """
    computations, entry = _computations(hlo)
    turns, unknown = _turns(computations, entry)
    found: dict[tuple[str, str], Collective] = {}
    for name, lines in computations.items():
        if name not in turns:
            continue
        for line in lines:
            match = _OPERATION.match(line)
            if match is None:
                continue
            operation, result, kind, start = match.groups()
            arrays = _ARRAY.findall(result)
            sizes = [_bytes(*array) for array in arrays]
            members = _group(line)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
                size = sum(sizes)
            elif kind == "reduce-scatter":
                size = max(sizes) if start else sum(sizes) * (members or 1)
            elif start and kind != "all-reduce":  # the result of a start: operands, results, and counters
                size = max(sizes)
            else:
                size = sum(sizes)
            chain = _CHAIN.search(line)
            key = ("chain", f"{kind} {chain[1]}") if chain else (name, operation)
            known = Collective(
                kind, size, frozenset(dtype for dtype, _ in arrays), members, turns[name], name in unknown
            )
            if key not in found or found[key].times < known.times:
                found[key] = known
    return list(found.values())


def totals(found: Iterable[Collective]) -> Mapping[str, Total]:
    """Totals of each kind that occurs, in the order of `KINDS`."""
    by_kind: dict[str, list[Collective]] = defaultdict(list)
    for collective in found:
        by_kind[collective.kind].append(collective)
    return {
        kind: Total(
            sum(c.times for c in by_kind[kind]),
            sum(c.size * c.times for c in by_kind[kind]),
            sum(c.sent for c in by_kind[kind]),
            any(c.loop for c in by_kind[kind]),
        )
        for kind in KINDS
        if kind in by_kind
    }


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by name, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _turns(computations: Mapping[str, list[str]], entry: str) -> tuple[dict[str, int], set[str]]:
    """Executions of each computation, and the computations in loops of unknown length."""
    turns: dict[str, int] = {}
    unknown: set[str] = set()
    waiting = [(entry, 1, False)]
    while waiting:
        name, times, uncertain = waiting.pop()
        if name not in computations or turns.get(name, 0) >= times:
            continue
        turns[name] = times
        if uncertain:
            unknown.add(name)
        for line in computations[name]:
            loop = _WHILE.search(line)
            if loop:
                length = _length(line, computations.get(loop[1], []))
                waiting.append((loop[2], times * (length or 1), uncertain or length is None))
            elif called := _CALLED.search(line):
                waiting += [(c.strip().lstrip("%"), times, uncertain) for c in called[1].split(",")]
    return turns, unknown


def _length(loop: str, condition: list[str]) -> int | None:
    note = _TRIPS.search(loop)
    if note:
        return int(note[1])
    buffers = [int(c[1]) for line in condition if (c := _CONSTANT.search(line))]
    counted = any(line.lstrip().startswith("ROOT") and "direction=LT" in line for line in condition)
    return buffers[0] if counted and len(buffers) == 1 else None


def _bytes(kind: str, sizes: str) -> int:
    bits = 8 if kind == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))
    return prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _group(line: str) -> int:
    """Devices in one group of a collective."""
    if listed := _GROUPS_LISTED.search(line):
        return len(listed[1].split(","))
    if iota := _GROUPS_IOTA.search(line):
        return int(iota[2])
    if mesh := _GROUPS_MESH.search(line):
        axes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", mesh[1]))
        return prod(int(axes.get(axis, 1)) for axis in re.findall(r"[\w.]+", mesh[2]))
    return 0
