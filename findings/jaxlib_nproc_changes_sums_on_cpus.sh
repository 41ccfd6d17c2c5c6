#!/usr/bin/env bash
# jaxlib 0.10.2: the environment variable NPROC sets the number of threads of XLA's CPU client, and with it the bits of
# sums and products.
#
# Build systems and CI set NPROC for `make -j`; one would expect JAX to count the processors that the process may use
# (os.sched_getaffinity), or to read OMP_NUM_THREADS. It does read NPROC (and PJRT_NPROC), and divides a sum over as many
# threads, so the same program on the same machine gives other last bits. OMP_NUM_THREADS changes nothing. A record of
# an environment that names processor, affinity and versions therefore misses it.
# Output seen (on a machine with two processors):
#   NPROC=1          processors 2, sum b1d95257, product b086b897
#   NPROC=2          processors 2, sum 66a9b1e0, product 31b03724
#   PJRT_NPROC=1     processors 2, sum b1d95257, product b086b897
#   OMP_NUM_THREADS  processors 2, sum 66a9b1e0, product 31b03724
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/sums.py" <<'PY'
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np

assert jax.lib.__version__ == "0.10.2"
x = jnp.asarray(np.random.default_rng(0).standard_normal((2**18, 32)), jnp.float32)


def digest(array):
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:8]


total, product = jax.jit(jnp.sum)(x), jax.jit(lambda a: a.T @ a)(x)
print(f"processors {len(os.sched_getaffinity(0))}, sum {digest(total)}, product {digest(product)}")
PY
run() { env -u NPROC -u PJRT_NPROC -u OMP_NUM_THREADS JAX_PLATFORMS=cpu "$@" "$folder/venv/bin/python" "$folder/sums.py"; }
one=$(run NPROC=1)
two=$(run NPROC=2)
other=$(run PJRT_NPROC=1)
omp=$(run NPROC=2 OMP_NUM_THREADS=1)
printf 'NPROC=1          %s\nNPROC=2          %s\nPJRT_NPROC=1     %s\nOMP_NUM_THREADS  %s\n' "$one" "$two" "$other" "$omp"
test "$one" != "$two" # the same processors, other bits
test "$one" = "$other"
test "$two" = "$omp"
