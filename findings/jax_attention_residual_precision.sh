#!/usr/bin/env bash
# jax 0.10.2: `jax.nn.dot_product_attention(..., return_residual=True)` rounds the log-sum-exp to the type of the keys.
#
# The log-sum-exp is what merges two attentions over different keys (as flash attention merges its blocks), so one would
# expect float32, as the scores themselves are accumulated. With bfloat16 keys the residual comes back as bfloat16: an
# absolute error of 0.0155 in a log-sum-exp near 4, which is an error of 1.5 per cent in every merged weight.
# Output seen:
#   residual dtype bfloat16, largest error of the log-sum-exp 0.0155
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

query, key, value = (jax.random.normal(jax.random.key(i), (1, 64, 2, 64), jnp.bfloat16) for i in range(3))
_, residual = jax.nn.dot_product_attention(query, key, value, return_residual=True)
scores = np.einsum("bqnh,bknh->bqnk", *(np.asarray(x, np.float64) for x in (query, key))) / 8.0
expected = np.log(np.exp(scores).sum(-1))
error = np.abs(np.asarray(residual, np.float64) - expected).max()
print(f"residual dtype {residual.dtype}, largest error of the log-sum-exp {error:.4f}")
assert jax.__version__ == "0.10.2"
assert residual.dtype == jnp.bfloat16, "the residual is no longer rounded to the type of the keys"
assert error > 5e-3, "the residual is now precise"
PY
