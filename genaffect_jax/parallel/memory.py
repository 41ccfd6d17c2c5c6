"""Device memory: what there is, and what a compiled program needs by XLA's account."""

from __future__ import annotations

import os

import jax


def device_memory() -> int:
    """Bytes that one device can use; on CPUs the memory of the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes on one device while a program runs: arguments, results and scratch, without what they share."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    return (
        found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether JAX raised this because memory ran out."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
