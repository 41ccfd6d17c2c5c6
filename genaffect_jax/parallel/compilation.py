"""Says that a program is compiled, when it really is: not when it comes from the persistent compilation cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

# JAX has no event between the look into its cache and the compilation, only this log entry (jax 0.10 and 0.11).
_LOGGER, _MISS = "jax._src.compiler", "PERSISTENT COMPILATION CACHE MISS"

Tell = Callable[[str], object]


def compile_telling(lowered: jax.stages.Lowered, what: str, tell: Tell | None) -> jax.stages.Compiled:
    """Compiles a program, or reads it from the persistent compilation cache, which takes a fraction of the time.

    Args:
        lowered: the program.
        what: names it in messages.
        tell: called with a line before it is compiled, and with one afterwards that says how long that took and
            whether the next start will find it in the cache; not called if the cache has it. None: nothing is told.
    """
    if tell is None:
        return lowered.compile()
    begun: list[float] = []

    def begin() -> None:
        if not begun:
            begun.append(time.monotonic())
            tell(f"compiling {what}, once for this model, these settings and this number of images ...")

    if not _is_cached():
        begin()
    with _cache_misses_call(begin):
        compiled = lowered.compile()
    if begun:
        seconds = time.monotonic() - begun[0]
        tell(f"compiled in {seconds:.0f} s; {_later(seconds)}")
    return compiled


def _is_cached() -> bool:
    return bool(jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]


def _later(seconds: float) -> str:
    if not _is_cached():
        return "nothing keeps it for the next start (no compilation cache)"
    if seconds < jax.config.jax_persistent_cache_min_compile_time_secs:  # type: ignore[attr-defined]
        return "too fast to be kept for the next start"
    return f"the next start reuses it, from {jax.config.jax_compilation_cache_dir}"  # type: ignore[attr-defined]


@contextmanager
def _cache_misses_call(begin: Callable[[], None]) -> Iterator[None]:
    """Calls `begin` when JAX logs, in this block, that its cache does not have a program."""
    logger = logging.getLogger(_LOGGER)
    level, shown_from = logger.level, logger.getEffectiveLevel()

    def watch(record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(_MISS):
            begin()
        return record.levelno >= shown_from  # what would not have been logged without this block, is not

    logger.addFilter(watch)
    logger.setLevel(min(logging.DEBUG, shown_from))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeFilter(watch)
