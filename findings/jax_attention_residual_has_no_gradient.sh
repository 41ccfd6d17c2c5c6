#!/usr/bin/env bash
# jax 0.10.2: the log-sum-exp of `jax.nn.dot_product_attention(..., return_residual=True)` has no gradient, silently.
#
# The documentation points to FlashAttention-2, where the log-sum-exp merges attentions over parts of the keys, and says
# nothing of gradients. One would expect that two attentions merged by it can be trained as one attention over all keys.
# The forward passes agree. The gradients do not: `xla` stops the residual's gradient, and `cudnn` takes the gradient of
# the result alone (the program that is lowered for CUDA has no input for the residual's weights). No error, no warning.
# Output seen:
#   forward: largest difference 1.6e-06
#   gradient of the queries: relative error 0.37
#   inputs of the gradient's program for CUDA: 3 of 4, the weights of the log-sum-exp are not among them
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

assert jax.__version__ == "0.10.2"
q, k, v, weights = (jax.random.normal(jax.random.key(i), (1, 64, 2, 64)) for i in range(4))
k = 2 * k


def whole(q):
    return jax.nn.dot_product_attention(q, k, v)


def merged(q):
    (a, lse_a), (b, lse_b) = (
        jax.nn.dot_product_attention(q, k[:, part], v[:, part], return_residual=True)
        for part in (slice(0, 16), slice(16, 64))
    )
    share = jax.nn.sigmoid(lse_b - lse_a)[..., None]
    return a + share * (b - a)


forward = float(jnp.abs(whole(q) - merged(q)).max())
expected, found = (jax.grad(lambda q, f=f: (f(q) * weights).sum())(q) for f in (whole, merged))
error = float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
print(f"forward: largest difference {forward:.1e}")
print(f"gradient of the queries: relative error {error:.2f}")
assert forward < 1e-5
assert error > 0.1, "the residual has a gradient now"

# The program for CUDA is lowered only, which needs no GPU, but JAX asks for cuDNN's version before it does.
from jax._src.cudnn import fused_attention_stablehlo

fused_attention_stablehlo.check_cudnn_version = lambda: 91900


def residual(q, k, v, w):
    return (jax.nn.dot_product_attention(q, k, v, implementation="cudnn", return_residual=True)[1] * w).sum()


half, of_residual = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (q.shape, q.shape[:3]))
lowered = jax.jit(jax.grad(residual)).trace(half, half, half, of_residual).lower(lowering_platforms=("cuda",))
main = next(line for line in lowered.as_text().splitlines() if "@main" in line)
inputs = main.count("%arg")
print(f"inputs of the gradient's program for CUDA: {inputs} of 4, the weights of the log-sum-exp are not among them")
assert inputs == 3
assert "fmhaSoftmaxBackward" in lowered.as_text()
PY
