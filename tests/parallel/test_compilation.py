"""A compilation is told when there is one: not when the program comes from the persistent cache."""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from genaffect_jax.parallel.compilation import compile_telling


@pytest.fixture
def cache(tmp_path):
    """An empty persistent compilation cache that keeps everything."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def program(number: float):
    return jax.jit(lambda x: jnp.sin(x) * number).lower(jnp.ones(4))


def told(number: float) -> list[str]:
    lines: list[str] = []
    compiled = compile_telling(program(number), "the sampler", lines.append)
    assert compiled(jnp.ones(4)).shape == (4,)
    return lines


def test_a_new_program_is_told_before_and_after_and_one_in_the_cache_is_not(cache):
    first = told(1.5)
    assert len(first) == 2
    assert first[0].startswith("compiling the sampler, once for this model")
    assert first[1].startswith("compiled in 0 s; the next start reuses it, from ")
    assert first[1].endswith(str(cache))
    jax.clear_caches()  # what this process holds in memory, as in the next start
    assert told(1.5) == []
    assert len(told(2.5)) == 2


def test_the_first_line_comes_before_the_compilation(cache):
    at_first: list[bool] = []
    compile_telling(program(3.5), "it", lambda line: at_first.append(any(cache.glob("*"))))
    assert at_first[0] is False
    assert any(cache.glob("*"))


def test_it_is_said_when_nothing_keeps_the_program(cache):
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    assert told(4.5)[1].endswith("nothing keeps it for the next start (no compilation cache)")
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1000)
    compilation_cache.reset_cache()
    assert told(5.5)[1].endswith("too fast to be kept for the next start")


def test_nothing_more_is_logged_than_before(cache, caplog):
    logger = logging.getLogger("jax._src.compiler")
    level = logger.level
    told(6.5)
    assert logger.level == level
    assert not logger.filters
    assert caplog.records == []
    assert compile_telling(program(7.5), "it", None)(jnp.ones(4)).shape == (4,)
