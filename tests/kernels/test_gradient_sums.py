"""Gradients of bfloat16 products: float32 sums over devices, and the values of the usual gradients."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.partitioned import partitioned_collectives

from genaffect_jax.compile_check.collectives import collectives
from genaffect_jax.compile_check.topology import topology_devices
from genaffect_jax.compile_check.train_step import lower_train_step
from genaffect_jax.config import AutoencoderConfig, MeshConfig
from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.kernels.convolution import convolve
from genaffect_jax.kernels.matmul import matmul
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.face_encoders.encoder import build_encoder
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import batch_sharding, replicated
from genaffect_jax.parallel.xla import compiling_for
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.step import make_train_step

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler (extra tpu)"
)

# Of the paths by which a parameter gets its gradient, each is in one of them.
DENOISERS = {
    "registers": ({}, {}),
    "resampler": ({"dual_attention_layers": (0,)}, {"identity_tokens": 3, "attention": "text"}),
}
SMALL = FaceEncoderConfig(
    architecture="residual", image_size=32, widths=(8, 16), depths=(1, 1), norm_num_groups=4, neck=4, hidden=16, width=8
)
NETWORKS = {
    "autoencoder": lambda: Functional(
        lambda rngs: AutoencoderKL(
            AutoencoderConfig(latent_channels=4, block_out_channels=(8, 16), norm_num_groups=4),
            rngs=rngs,
            dtype=jnp.bfloat16,
        )
    ),
    **{
        name: lambda name=name, depths=depths: build_encoder(
            dataclasses.replace(SMALL, architecture=name, depths=depths, heads=2), "bfloat16"
        )
        for name, depths in (("residual", (1, 1)), ("transformer", (0, 1)), ("iresnet", (1, 1)))
    },
}


def lower_denoiser_step(tiny_config, name, devices):
    network, conditioning = DENOISERS[name]
    model = dataclasses.replace(
        tiny_config.model,
        mmdit=dataclasses.replace(tiny_config.model.mmdit, num_layers=2, **network),
        conditioning=dataclasses.replace(tiny_config.model.conditioning, **conditioning),
    )
    train = dataclasses.replace(tiny_config.train, compute_dtype="bfloat16")
    return lower_train_step(
        dataclasses.replace(tiny_config, model=model, train=train), make_mesh(MeshConfig(data=4), devices)
    )


def lower_image_step(tiny_config, name, devices):
    def loss(model, _, batch, keys):
        images = batch["images"].astype(jnp.bfloat16)
        made = model.from_latents(model.to_latents(images)) if name == "autoencoder" else model(images)
        return {"loss": (jnp.sum(jnp.square(made.astype(jnp.float32))), jnp.float32(made.size))}

    network, mesh, optimizer = (
        NETWORKS[name](),
        make_mesh(MeshConfig(data=4), devices),
        make_optimizer(tiny_config.train),
    )
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32, sharding=batch_sharding(mesh))
    target = devices[0].platform
    with compiling_for(target):
        step = make_train_step(network, loss, optimizer, ema_decay=0.9, seed=0, mesh=mesh)
        traced = step.trace(abstract_state(network, optimizer, mesh), {}, {"images": images})
        return traced.lower(lowering_platforms=(target,))


def half_precision_sums(found):
    """Sums over devices that are made in half precision, and the number of the others."""
    sums = [c for c in found if c.kind in ("all-reduce", "reduce-scatter")]
    half = [c for c in sums if c.dtypes & {"bf16", "f16"}]
    return half, len(sums) - len(half)


@pytest.mark.parametrize(
    ("lower", "name"), [(lower_denoiser_step, n) for n in DENOISERS] + [(lower_image_step, n) for n in NETWORKS]
)
def test_devices_add_gradients_in_float32(tiny_config, tmp_path, lower, name):
    half, others = half_precision_sums(partitioned_collectives(lower(tiny_config, name, jax.devices()[:4]), tmp_path))
    assert not half
    assert others > 10


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("lower", "name"), [(lower_denoiser_step, n) for n in DENOISERS] + [(lower_image_step, n) for n in NETWORKS]
)
def test_the_tpu_compiler_leaves_them_float32(tiny_config, lower, name):
    devices, _ = topology_devices("v5e:2x2")
    half, others = half_precision_sums(collectives(lower(tiny_config, name, devices).compile().as_text()))
    assert not half
    assert others > 0


def on_four_devices(function):
    """A product's kernel gradient, compiled where tokens are cut over devices and where they are not."""
    mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])

    def run(x, kernel):
        x, kernel = jax.device_put(x, batch_sharding(mesh)), jax.device_put(kernel, replicated(mesh))
        return jax.jit(function)(x, kernel)

    return run


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [
        ((9, 8), 3, 1, ((1, 1), (1, 1))),
        ((9, 8), 3, 2, ((0, 1), (0, 1))),  # Downsample
        ((8, 8), 1, 2, ((0, 0), (0, 0))),  # pixels that no output sees
        ((7, 9), 2, 1, ((1, 0), (0, 1))),  # Upsample
        ((10, 11), 3, 3, ((1, 1), (1, 1))),
    ],
)
def test_a_convolution_has_the_usual_gradients(dtype, side, size, stride, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, *side, 4)), dtype)
    kernel = jnp.asarray(rng.standard_normal((size, size, 4, 5)), dtype)

    def summed(function):
        def loss(x, kernel):
            y = function(x, kernel).astype(jnp.float32)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

        return jax.grad(loss, (0, 1))

    def usual(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours = summed(lambda x, kernel: convolve(x, kernel, (stride, stride), padding))
    expected = summed(usual)(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for found in (ours(x, kernel), on_four_devices(ours)(x, kernel)):
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
            assert error < (1e-5 if dtype == jnp.float32 else 1e-2)


def test_a_kernels_gradient_is_the_rounded_sum_on_one_device_and_on_four():
    # 256 and three times 1: 259 rounds to 260, but 256 + 1 to 256. (CPUs add in float32 in any case; that no device
    # rounds its part is what the programs above show.)
    x = jnp.asarray([256.0, 1.0, 1.0, 1.0], jnp.bfloat16).reshape(4, 1)
    kernel = jnp.ones((1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda x, kernel: jnp.sum(matmul(x, kernel, jnp.bfloat16).astype(jnp.float32)), 1)
    for found in (gradient(x, kernel), on_four_devices(gradient)(x, kernel)):
        assert found.dtype == jnp.bfloat16
        assert float(found[0, 0]) == 260.0
