"""The report on a compiled program: its memory beside a chip's, its collectives, and an estimate of its time."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from genaffect_jax.compile_check.collectives import Total, collectives, totals
from genaffect_jax.parallel.chips import Chip
from genaffect_jax.parallel.memory import is_out_of_memory

ATTAINABLE = 0.5
"""Share of the peak that products and attention are taken to reach; an assumption, nothing was run."""
_SIZE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER = r"([\d.]+)([KMGT]?)"
# Messages of the compiler about programs that it refuses.
_REFUSALS = (
    re.compile(rf"\({_NUMBER}\) exceeds available HBM \({_NUMBER}\)"),
    re.compile(rf"Used {_NUMBER} of {_NUMBER} hbm", re.IGNORECASE),
)


@dataclass(frozen=True)
class Memory:
    """Bytes on each chip."""

    arguments: int
    outputs: int
    aliased: int
    """Outputs that reuse the memory of arguments."""
    temporary: int
    code: int

    @property
    def total(self) -> int:
        """Bytes while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


@dataclass(frozen=True)
class Seconds:
    """Estimated times of one run in seconds, each as if there were nothing else."""

    compute: float
    """Operations at `ATTAINABLE` of the peak."""
    memory: float
    """Least memory traffic: arguments read, outputs written, temporaries written and read once."""
    links: float
    """Bytes sent to other chips over all links at their full rate."""

    @property
    def step(self) -> float:
        """The largest of the three, which assumes that they overlap completely."""
        return max(self.compute, self.memory, self.links)


@dataclass(frozen=True)
class ProgramReport:
    """One program on one kind of chip."""

    name: str
    fits: bool
    verdict: str
    """Why, in one line."""
    compile_seconds: float
    memory: Memory | None
    """None if the compiler refused the program."""
    flops: float
    """Operations on each chip in one run, with recomputation."""
    kernels: int
    """Pallas kernels in the program."""
    collectives: Mapping[str, Total]
    estimate: Seconds | None


def compile_and_report(
    name: str, lowered: jax.stages.Lowered, chip: Chip, flops: float, reserve: float
) -> ProgramReport:
    """Compiles a program and reports whether it fits.

    Args:
        name: name of the program in the report.
        lowered: the program, lowered for this kind of chip.
        chip: memory and rates of one chip.
        flops: operations on each chip in one run.
        reserve: share of the memory that has to stay free, for other programs and arrays.
    """
    kernels = lowered.as_text().count("tpu_custom_call")
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if not is_out_of_memory(e):
            raise
        spent = time.perf_counter() - start
        return ProgramReport(name, False, f"{name}: {refusal(str(e))}", spent, None, flops, kernels, {}, None)
    spent = time.perf_counter() - start
    memory = memory_of(compiled.memory_analysis())
    found = totals(collectives(compiled.as_text() or ""))
    fits, verdict = judge(memory, chip, reserve)
    estimate = Seconds(
        flops / (ATTAINABLE * chip.peak),
        (memory.arguments + memory.outputs + 2 * memory.temporary) / chip.memory_rate,
        sum(total.sent for total in found.values()) / chip.link_rate,
    )
    return ProgramReport(name, fits, f"{name}: {verdict}", spent, memory, flops, kernels, found, estimate)


def memory_of(analysis: Any) -> Memory:
    """The memory of a compiled program, from XLA's analysis."""
    return Memory(
        analysis.argument_size_in_bytes,
        analysis.output_size_in_bytes,
        analysis.alias_size_in_bytes,
        analysis.temp_size_in_bytes,
        analysis.generated_code_size_in_bytes,
    )


def judge(memory: Memory, chip: Chip, reserve: float) -> tuple[bool, str]:
    """Whether a program leaves the share `reserve` of the chip's memory free, and a sentence that says so."""
    allowed = (1 - reserve) * chip.memory
    share = f"{in_words(memory.total)} of the {in_words(chip.memory)} of a {chip.name} chip"
    if memory.total <= allowed:
        return True, f"fits: takes {share}"
    return False, f"does not fit: takes {share}, {in_words(allowed)} are allowed ({reserve:.0%} stay free)"


def refusal(message: str) -> str:
    """The compiler's message about a program that is too large, in the words of `judge`; as it is if not recognised."""
    for pattern in _REFUSALS:
        if found := pattern.search(message):
            needed, unit, available, of = found.groups()
            sizes = float(needed) * _SIZE[unit.upper()], float(available) * _SIZE[of.upper()]
            return f"does not fit: the compiler refuses it, {in_words(sizes[0])} do not go into {in_words(sizes[1])}"
    return f"does not fit: the compiler refuses it: {message.strip().splitlines()[0]}"


def in_words(size: float) -> str:
    """Bytes as GiB, or as MiB below 256 MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
