#!/usr/bin/env bash
# A float32 product that is summed over devices and then rounded to bfloat16 is rounded before the sum by the TPU
# compiler: preferred_element_type=float32 does not decide in which type devices add.
#
# Seen with jax 0.10.2 and libtpu 0.0.42.1, compiled ahead of time for a v5e:2x2 topology (no TPU is needed): the product
# of two matrices whose contracted axis is cut over four devices becomes one all-reduce. It is bfloat16
#   - if the product is asked for in float32 and cast afterwards,
#   - if an optimization barrier stands between product and cast,
#   - if xla_tpu_spmd_f32_accum_for_bf16_ar is on as well,
# so that 256 + 1 + 1 + 1 is 256. It is float32 if jax.lax.reduce_precision does the rounding before the cast, or if the
# result is not cast. The CPU's compiler gives a float32 all-reduce in every case, so its programs do not show this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cat > "$folder/try.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices
mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
cut, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
half = jnp.bfloat16


def product(x, y):
    return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


WAYS = {
    "float32 product": lambda x, y: product(x, y),
    "cast": lambda x, y: product(x, y).astype(half),
    "barrier, cast": lambda x, y: jax.lax.optimization_barrier(product(x, y)).astype(half),
    "reduce_precision, cast": lambda x, y: jax.lax.reduce_precision(product(x, y), 8, 7).astype(half),
}


def sums(function, options):
    shapes = (jax.ShapeDtypeStruct((4096, width), half, sharding=cut) for width in (256, 512))
    # Nothing else uses the result in bfloat16: it is added to float32 parameters, as an optimizer does.
    step = jax.jit(lambda x, y: 1.0 + function(x, y).astype(jnp.float32), out_shardings=whole)
    text = step.lower(*shapes).compile(compiler_options=options).as_text()
    return sorted(set(re.findall(r"= (\w+)\[256,512\]\S* all-reduce(?:-start)?\(", text)))


found = {name: sums(function, {}) for name, function in WAYS.items()}
found["cast, f32_accum"] = sums(WAYS["cast"], {"xla_tpu_spmd_f32_accum_for_bf16_ar": True})
for name, types in found.items():
    print(f"{name:24} {types}")
assert found == {
    "float32 product": ["f32"],
    "cast": ["bf16"],
    "barrier, cast": ["bf16"],
    "reduce_precision, cast": ["f32"],
    "cast, f32_accum": ["bf16"],
}, found
PY
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost "$folder/venv/bin/python" "$folder/try.py"
echo "as described"
