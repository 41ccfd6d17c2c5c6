"""Attention kernels on several devices: each has its own images and heads, and the result is that of one device."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genaffect_jax.compile_check.train_step import lower_train_step
from genaffect_jax.config import DenoiserRun, MeshConfig
from genaffect_jax.kernels import attention as attention_backends
from genaffect_jax.kernels.attention import run_backend, splash_attention, xla_attention
from genaffect_jax.kernels.partition import run_partitioned
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import batch_sharding, replicated


def inputs(batch: int = 4, heads: int = 2) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((batch, 9, heads, 64), (batch, 13, heads, 64), (batch, 13, heads, 64))
    mask = np.ones((batch, 13), bool)
    mask[1:, 8:] = False  # another one for every device: a mask on the wrong share shows
    return (*(jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes), jnp.asarray(mask))


@pytest.fixture
def interpreted(monkeypatch) -> None:
    """The TPU kernel in plain JAX."""
    monkeypatch.setattr(attention_backends, "splash_attention", partial(splash_attention, interpret=True))


@pytest.mark.parametrize("lse", [False, True])
def test_partitioned_splash_attention_equals_attention_of_all(interpreted, lse: bool) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    arrays = inputs()
    found = jax.jit(lambda *x: run_backend("splash", *x, lse))(*jax.device_put(arrays, batch_sharding(mesh)))
    expected = xla_attention(*arrays, lse)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
    cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    assert found[0].sharding.is_equivalent_to(cut, 4)
    if lse:
        np.testing.assert_allclose(found[1], expected[1], atol=2e-5)


def test_gradients_of_partitions_are_those_of_all(interpreted) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    *arrays, mask = inputs()

    def total(attention, *arrays):
        return jnp.sum(jnp.square(attention(*arrays, mask, False)[0]))

    gradient = jax.jit(jax.grad(partial(total, partial(run_backend, "splash")), (0, 1, 2)))
    for found, expected in zip(
        gradient(*jax.device_put(arrays, batch_sharding(mesh))),
        jax.grad(partial(total, xla_attention), (0, 1, 2))(*arrays),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_the_mesh_does_not_divide_is_computed_whole_on_every_device() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    seen = []

    def kernel(x):
        seen.append(x.shape)
        return x * 2

    def run(x):
        return run_partitioned(kernel, (x,), (("batch", "heads"),), ("batch", "heads"))

    x = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(jax.jit(run)(jax.device_put(x, replicated(mesh))), 2 * x)
    np.testing.assert_array_equal(jax.jit(run)(x), 2 * x)  # one device
    assert seen == [(3, 2), (3, 4)]


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}])
def test_the_training_step_with_the_tpu_kernel_lowers_for_several_tpus(tiny_config: DenoiserRun, axes: dict) -> None:
    network = dataclasses.replace(
        tiny_config.model.mmdit,
        attention_head_dim=64,
        joint_attention_dim=128,
        remat="named",
    )
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, mmdit=network))
    # JAX refuses a kernel that nothing cuts over the devices; needs no TPU compiler.
    lowered = lower_train_step(config, make_mesh(MeshConfig(**axes)), target="tpu")
    assert lowered.as_text().count("tpu_custom_call") >= 3  # forward, and two kernels of its gradient
