#!/usr/bin/env bash
# jax 0.10.2: a program with a host callback is never written to the persistent compilation cache, without a word.
#
# With the cache on and all thresholds at zero, a jitted function is stored under its name. The same function with one
# `jax.debug.callback` (a progress line from inside a sampling loop, say) is compiled anew in every process; no warning
# says so. For a sampler that takes half a minute to compile, one progress callback costs that half minute each start.
# Output seen:
#   without a callback: 1 file in the cache; with one: 0 files
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/cache" <<'PY'
import os
import sys

import jax
import jax.numpy as jnp

assert jax.__version__ == "0.10.2"
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def silent(x):
    return jnp.sin(x) @ x


def telling(x):
    jax.debug.callback(lambda value: None, x[0, 0])
    return jnp.cos(x) @ x


for function in (silent, telling):
    jax.jit(function)(jnp.ones((64, 64))).block_until_ready()
files = os.listdir(sys.argv[1])
kept, lost = (sum(name in file for file in files) for name in ("jit_silent", "jit_telling"))
print(f"without a callback: {kept} file in the cache; with one: {lost} files")
assert kept == 1
assert lost == 0, "programs with callbacks are cached now"
PY
