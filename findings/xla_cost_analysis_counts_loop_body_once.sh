#!/usr/bin/env bash
# jax 0.10.2: `compiled.cost_analysis()["flops"]` counts the body of a `lax.scan` once, whatever its length.
#
# A scanned transformer of 100 equal layers therefore reports the operations of one layer, and a utilisation computed
# from it is wrong by the number of layers. Operations have to be counted by arithmetic.
# Output seen (one 128 x 128 matrix product a turn, 4194304 FLOP):
#   length 1: 4194304 FLOP
#   length 10: 4194306 FLOP
#   length 100: 4194306 FLOP
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnums=1)
def power(x, length):
    return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=length)[0]


assert jax.__version__ == "0.10.2"
found = {}
for length in (1, 10, 100):
    found[length] = power.lower(jnp.ones((128, 128)), length).compile().cost_analysis()["flops"]
    print(f"length {length}: {found[length]:.0f} FLOP")
assert found[100] < 1.01 * found[1], "the length of the loop now counts"
PY
