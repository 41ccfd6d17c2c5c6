"""The collectives of a program as the partitioner wrote them, before any pass for this machine's kind of device."""

import jax

from genaffect_jax.compile_check.collectives import Collective, collectives


def partitioned_collectives(lowered, folder) -> list[Collective]:
    """The collectives of a lowered program for several devices.

    The CPU's compiler makes bfloat16 sums float32, so its finished program does not show what other devices get.

    Args:
        lowered: the program.
        folder: an empty folder for the compiler's text.
    """
    # A program from the compilation cache writes no text, so this one must not get there.
    usual = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        lowered.compile(
            compiler_options={
                "xla_dump_to": str(folder),
                "xla_dump_hlo_pass_re": "spmd-partitioning",
                "xla_backend_optimization_level": 0,
            }
        )
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", usual)
    (text,) = folder.glob("*.after_spmd-partitioning.*")
    return collectives(text.read_text())
