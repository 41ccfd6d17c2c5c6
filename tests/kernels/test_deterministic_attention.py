"""cuDNN's attention with a repeatable gradient: JAX's own call with one field more, wherever it is lowered.

The call itself needs an NVIDIA GPU: `benchmarks/soak.py --attention` repeats a training there.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import NamedSharding, PartitionSpec

from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.kernels import deterministic_attention as module
from genaffect_jax.kernels.attention import choose_backend, run_backend
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.xla import compiling_for, deterministic


@pytest.fixture(autouse=True)
def with_cudnn(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)


def gradients(query, key, value):
    def attention(*arrays):
        return run_backend(choose_backend(query.dtype, False), *arrays, None, False)[0]

    out, backward = jax.vjp(attention, query, key, value)
    return out, backward(out)


def lowered(queries, keys, on, sharding=None, batch=4):
    shapes = [jax.ShapeDtypeStruct((batch, n, 2, 64), jnp.bfloat16, sharding=sharding) for n in (queries, keys, keys)]
    with compiling_for("gpu"), deterministic(on):
        return jax.jit(gradients).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def gradient_call(text):
    """Description and everything else of the one call of cuDNN's gradient, without the names of its operands."""
    (line,) = (line for line in text.splitlines() if "fmhaSoftmaxBackward" in line)
    description = re.search(r'backend_config = "(.*?)"', line)[1]
    rest = re.sub(r"%[\w#]+(:\d+)?", "%", line.replace(description, ""))
    return json.loads(description.replace("\\22", '"')), rest


@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (15, 13), (16, 13), (1357, 1357)])
def test_the_gradient_is_the_call_of_jax_with_a_fixed_order_of_sums(queries, keys):
    (usual, rest), (fixed, other_rest) = (gradient_call(lowered(queries, keys, on)) for on in (False, True))
    assert "force_deterministic" not in usual["cudnn_fmha_backend_config"]
    usual["cudnn_fmha_backend_config"]["force_deterministic"] = True
    assert fixed == usual
    assert other_rest == rest


@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (15, 13)])
def test_the_forward_pass_is_the_same_call(queries, keys):
    def forward(text):
        lines = [line for line in text.splitlines() if re.search(r"fmhaSoftmax\(", line)]
        return [re.sub(r"%[\w#]+(:\d+)?", "%", line) for line in lines]

    usual, fixed = (forward(lowered(queries, keys, on)) for on in (False, True))
    assert len(usual) == 1
    assert fixed == usual


def test_every_device_has_the_call_for_its_own_images_and_heads():
    mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor", None))
    description, rest = gradient_call(lowered(15, 13, True, sharding))
    table = description["cudnn_fmha_backend_config"]
    assert table["force_deterministic"] is True
    assert table["intermediate_tensor_shape"]["dimensions"] == ["2", "1", "16", "14"]
    assert "tensor<2x16x1x64xbf16>" in rest


def test_other_platforms_compute_the_same_bits_with_and_without():
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((2, n, 2, 64)), jnp.bfloat16) for n in (15, 13, 13)]
    with deterministic():
        inside = jax.jit(gradients)(*arrays)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(jax.jit(gradients)(*arrays)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_program_traced_outside_is_not_used_inside():
    program = jax.jit(gradients)
    shapes = [jax.ShapeDtypeStruct((2, 16, 2, 64), jnp.bfloat16)] * 3
    texts = []
    for on in (False, True, False):
        with compiling_for("gpu"), deterministic(on):
            texts.append(program.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text())
    assert ["force_deterministic" in text for text in texts] == [False, True, False]


# Each attempt has a number of images of its own: nothing that was traced before answers for it.
def other_parameters(batch, heads, is_bwd):
    return ""


def other_table(*arguments, is_bwd):
    return json.dumps({"attention": {}})


def test_a_jax_that_describes_the_call_in_another_way_is_refused(monkeypatch):
    monkeypatch.setattr(cudnn, "create_dot_product_attention_backend_config", other_parameters)
    with pytest.raises(ConfigError, match=rf"cannot be made deterministic with jax {jax.__version__}.*takes batch, "):
        lowered(16, 16, True, batch=5)
    monkeypatch.setattr(cudnn, "create_dot_product_attention_backend_config", other_table)
    monkeypatch.setattr(module, "_DESCRIBED_BY", ["arguments", "is_bwd"])
    with pytest.raises(ConfigError, match=r"entries \['attention'\] and no table cudnn_fmha_backend_config"):
        lowered(16, 16, True, batch=6)
    monkeypatch.delattr(cudnn, "create_dot_product_attention_backend_config")
    with pytest.raises(ConfigError, match="cannot import name"):
        lowered(16, 16, True, batch=7)


def test_a_gradient_that_would_lack_that_of_the_log_sum_exp_is_refused():
    x = jnp.ones((1, 4, 2, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="the log-sum-exp has no gradient"):
        jax.grad(lambda x: run_backend("cudnn", x, x, x, None, True)[0].astype(jnp.float32).sum())(x)
