"""Gradients that are written out equal those that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.kernels import token_reduce
from genaffect_jax.kernels.fused_bias import add_bias, bias_and_qk_norm, gated_residual
from genaffect_jax.kernels.fused_mlp import gelu_products
from genaffect_jax.kernels.matmul import matmul
from genaffect_jax.kernels.norms import layer_norm, modulated_norm, rms_norm
from genaffect_jax.kernels.token_reduce_reference import over_group
from genaffect_jax.parallel.xla import compiling_for


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_same_gradients(written, derived, *inputs, rtol=1e-4, atol=1e-5):
    """Values and gradients of all inputs; each result is weighed by numbers of its own."""

    def of(function):
        def weighed(*inputs):
            results = jax.tree.leaves(function(*inputs))
            return sum(jnp.sum(normal(100 + i, *x.shape) * jnp.sin(x)) for i, x in enumerate(results))

        return jax.value_and_grad(weighed, tuple(range(len(inputs))))(*inputs)

    (value, gradients), (expected, derivatives) = of(written), of(derived)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(gradients, derivatives, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3, 5)])
def test_of_a_product_and_its_kernel(batch):
    arrays = normal(0, *batch, 8), normal(1, 8, 6)
    assert_same_gradients(lambda *a: matmul(*a, jnp.float32), jnp.matmul, *arrays, rtol=1e-5, atol=1e-6)


def test_of_half_precision_keep_the_types_of_what_was_multiplied():
    x, kernel = normal(0, 3, 8).astype(jnp.bfloat16), normal(1, 8, 6).astype(jnp.bfloat16)
    dx, dkernel = jax.grad(lambda x, kernel: matmul(x, kernel, jnp.float32).sum(), (0, 1))(x, kernel)
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_of_a_bias():
    assert_same_gradients(add_bias, lambda product, bias: product + bias, normal(0, 2, 3, 6), normal(1, 6))


def test_of_a_bias_of_half_precision_are_summed_in_float32():
    product, bias = normal(0, 3000, 6).astype(jnp.bfloat16), jnp.zeros(6)
    weight = normal(1, 3000, 6).astype(jnp.bfloat16)
    dbias = jax.grad(lambda bias: jnp.sum((add_bias(product, bias) * weight).astype(jnp.float32)))(bias)
    np.testing.assert_allclose(dbias, weight.astype(jnp.float32).sum(axis=0), rtol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("batch", [(5,), (2, 3, 5)])
def test_of_a_feed_forward_network(batch, keep):
    def derived(x, up, bias, down):
        return jax.nn.gelu(x @ up + bias) @ down

    arrays = normal(0, *batch, 8), normal(1, 8, 12), normal(2, 12), normal(3, 12, 6)
    with compiling_for("gpu" if keep else "cpu"):  # a CPU keeps nothing
        assert_same_gradients(lambda *a: gelu_products(*a, jnp.float32, keep), derived, *arrays)


def test_of_queries_keys_and_values():
    def derived(product, bias, query_scale, key_scale):
        query, key, value = (x.reshape(*x.shape[:-1], 2, 8) for x in jnp.split(product + bias, 3, axis=-1))
        return rms_norm(query, query_scale), rms_norm(key, key_scale), value

    arrays = normal(0, 2, 3, 5, 48), normal(1, 48), normal(2, 8), normal(3, 8)
    assert_same_gradients(bias_and_qk_norm, derived, *arrays)


def test_of_a_gated_branch():
    arrays = normal(0, 2, 3, 5, 8), normal(1, 2, 3, 1, 8), normal(2, 2, 3, 5, 8), normal(3, 8)
    assert_same_gradients(gated_residual, lambda stream, gate, product, bias: stream + gate * (product + bias), *arrays)


def test_of_a_modulated_norm_its_shift_and_scale():
    arrays = normal(0, 2, 3, 5, 64), normal(1, 2, 3, 1, 64), normal(2, 2, 3, 1, 64)
    assert_same_gradients(modulated_norm, lambda x, shift, scale: (x, layer_norm(x) * (1.0 + scale) + shift), *arrays)


def of_half_precision(length):
    """Functions whose gradients sum over tokens, with shapes that a Hopper GPU's kernel takes."""

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    tokens, image, vector = array(2, 1, length, 128), array(2, 1, 1, 128, dtype=jnp.float32), array(128)
    head = array(64, dtype=jnp.float32)
    feed_forward = (tokens, array(128, 128), vector, array(128, 64))
    return {
        "gelu": (lambda *a: gelu_products(*a, jnp.bfloat16, False), feed_forward),
        "gelu kept": (lambda *a: gelu_products(*a, jnp.bfloat16, True), feed_forward),
        "heads": (bias_and_qk_norm, (array(2, 1, length, 384), array(384), head, head)),
        "gate": (gated_residual, (tokens, image, tokens, vector)),
        "norm": (modulated_norm, (tokens, image, image)),
    }


@pytest.mark.parametrize("length", [128, 77])
@pytest.mark.parametrize("name", ["gelu", "gelu kept", "heads", "gate", "norm"])
def test_sums_over_tokens_are_made_by_the_kernel_on_a_hopper_gpu(name, length, monkeypatch):
    function, shapes = of_half_precision(length)[name]

    def gradient(*arrays):
        results, backward = jax.vjp(function, *arrays)
        return backward(results)

    def lowered():
        with compiling_for("gpu"):
            return jax.jit(gradient).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()

    assert "mosaic_gpu" not in lowered()
    monkeypatch.setattr(token_reduce, "is_hopper", lambda: True)
    jax.clear_caches()
    assert "mosaic_gpu" in lowered()


@pytest.mark.parametrize(("target", "keep", "kept"), [("gpu", True, 3), ("gpu", False, 2), ("cpu", True, 2)])
def test_the_result_of_gelu_is_kept_on_accelerators_alone(target, keep, kept):
    arrays = normal(0, 5, 8), normal(1, 8, 12), normal(2, 12), normal(3, 12, 6)
    with compiling_for(target):
        _, backward = jax.vjp(lambda *a: gelu_products(*a, jnp.float32, keep), *arrays)
    # Beside the arguments: what is as large as the hidden layer, with the tokens themselves.
    assert sum(len(leaf) == 5 for leaf in jax.tree.leaves(backward) if leaf.ndim == 2) == kept


def test_float32_and_odd_widths_do_without_the_kernel(monkeypatch):
    monkeypatch.setattr(token_reduce, "is_hopper", lambda: True)
    for width, dtype in ((128, jnp.float32), (96, jnp.bfloat16)):
        x = jnp.ones((1, 16, width), dtype)
        (doubled,), (total,) = token_reduce.token_reduce(
            lambda t, _v, _n: ((2 * t[0],), (t[0],)), [x], outputs=1, sums=1
        )
        np.testing.assert_array_equal(doubled, 2 * x)
        np.testing.assert_array_equal(total, np.full((1, width), 16))


def test_a_pass_gives_every_image_its_vector_and_every_token_its_number():
    x, y, vector, number = normal(0, 2, 5, 8), normal(1, 2, 5, 8), normal(2, 2, 8), normal(3, 2, 5)

    def function(tokens, vectors, numbers):
        (x, y), (vector,), (number,) = tokens, vectors, numbers
        return (x * vector, y + number), (x * number, over_group(y))

    made, summed = token_reduce.token_reduce(function, [x, y], [vector], [number], outputs=2, sums=2, group=4)
    np.testing.assert_allclose(made[0], x * vector[:, None], rtol=1e-6)
    np.testing.assert_allclose(made[1], y + number[..., None], rtol=1e-6)
    np.testing.assert_allclose(summed[0], (x * number[..., None]).sum(axis=1), rtol=1e-5, atol=1e-6)
    groups = y.reshape(2, 5, 2, 4).sum(axis=(1, 3))
    np.testing.assert_allclose(summed[1], jnp.repeat(groups, 4, axis=1), rtol=1e-5, atol=1e-6)
