"""Deterministic steps on GPUs: their compiler options, and what they may not hold."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from support.training_runs import Small, distance, with_train

from genaffect_jax.compile_check.train_step import lower_train_step
from genaffect_jax.config import MeshConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.functional import Functional
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.xla import compiler_options, compiling_for, deterministic, deterministic_options
from genaffect_jax.training import state as state_module
from genaffect_jax.training import step as step_module
from genaffect_jax.training.autoencoder.loss import autoencoder_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.repetition import refuse_unrepeatable, unmeasured, unrepeatable
from genaffect_jax.training.state import create_state
from genaffect_jax.training.step import make_train_step

CONFIGS = Path(__file__).parents[2] / "configs"
ONE = MeshConfig(data=1)


@pytest.fixture
def with_cudnn(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91900)


def test_only_deterministic_programs_for_gpus_are_compiled_without_autotuning():
    options = {"xla_gpu_exclude_nondeterministic_ops": True, "xla_gpu_autotune_level": 0}
    with compiling_for("gpu"):
        assert "xla_gpu_autotune_level" not in compiler_options()
        assert deterministic_options() == {}
        with deterministic():
            assert compiler_options(4) == {
                "xla_gpu_enable_triton_gemm": False,
                "xla_gpu_enable_latency_hiding_scheduler": True,
                **options,
            }
            assert deterministic_options() == options
            with deterministic(False):
                assert deterministic_options() == {}
    with deterministic():
        assert compiler_options() == deterministic_options() == {}


@pytest.mark.parametrize("on", [False, True])
def test_step_and_first_state_get_the_options(tiny_config, monkeypatch, on):
    given = {}

    def jit_of(name):
        def jit(function, **options):
            given[name] = options["compiler_options"]
            return lambda *_: None

        return jit

    mesh, optimizer, network = make_mesh(ONE, jax.devices()[:1]), make_optimizer(tiny_config.train), Functional(Small)
    for module, name in ((step_module, "step"), (state_module, "state")):
        monkeypatch.setattr(module.jax, "jit", jit_of(name))
        with compiling_for("gpu"), deterministic(on):
            if name == "step":
                make_train_step(network, distance, optimizer, ema_decay=0.9, seed=0, mesh=mesh)
            else:
                create_state(network, optimizer, mesh, 0)
    assert [options.get("xla_gpu_autotune_level") for options in given.values()] == [0 if on else None] * 2
    assert set(given) == {"step", "state"}


@pytest.mark.usefixtures("with_cudnn")
@pytest.mark.parametrize(("dtype", "remat"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "named")])
def test_the_step_of_a_preset_can_be_deterministic_and_every_attention_gradient_in_it_is(dtype, remat):
    config = with_train(runpy.run_path(str(CONFIGS / "avatar_tiny.py"))["config"](), compute_dtype=dtype)
    mmdit = dataclasses.replace(config.model.mmdit, remat=remat)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, mmdit=mmdit))
    mesh = make_mesh(ONE, jax.devices()[:1])
    gradients, forward = {}, {}
    for on in (False, True):
        text = lower_train_step(with_train(config, deterministic=on), mesh, "gpu").as_text()
        found = [line for line in text.splitlines() if "fmhaSoftmaxBackward" in line]
        gradients[on] = len(found), sum("force_deterministic" in line for line in found)
        forward[on] = text.count("fmhaSoftmax(")  # more of them would be computed again
    count = gradients[False][0]
    assert gradients == {False: (count, 0), True: (count, count)}
    assert (count > 0) == (dtype == "bfloat16")
    assert forward[True] == forward[False]


def test_a_step_with_gradients_of_convolutions_is_refused_on_gpus_alone(tiny_model):
    from genaffect_jax.models.autoencoder.model import AutoencoderKL

    network = Functional(lambda rngs: AutoencoderKL(tiny_model.autoencoder, rngs=rngs))

    def step(parameters, images):
        def loss(parameters):
            key = jax.random.key(0)
            return autoencoder_loss(network.merge(parameters), images, key, kl_weight=1.0, edge_weight=1.0)[0]

        return jax.grad(loss)(parameters)

    shapes = network.shapes, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    with deterministic():
        jax.eval_shape(refuse_unrepeatable(step), *shapes)
    with compiling_for("gpu"):
        jax.eval_shape(refuse_unrepeatable(step), *shapes)
    with (
        compiling_for("gpu"),
        deterministic(),
        pytest.raises(ConfigError, match=r"gradient of a convolution \(\d+\).*Train on CPUs, or without") as raised,
    ):
        jax.eval_shape(refuse_unrepeatable(step), *shapes)
    assert raised.value.on_command_line.startswith("--train.deterministic True: on GPUs")


def test_a_checked_function_returns_what_the_function_returns():
    def function(tree, number):
        return {"sum": tree["a"] + number, "none": None}, (jnp.sin(tree["b"]),)

    arguments = {"a": jnp.arange(3.0), "b": jnp.ones(2), "c": None}, 2.0
    with compiling_for("gpu"), deterministic():
        found = refuse_unrepeatable(function)(*arguments)
    expected = function(*arguments)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


IMAGES, KERNEL, TABLE = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), jnp.ones((5, 2))
ROWS = jnp.array([0, 3, 3])


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda: TABLE[ROWS], {}),
        (lambda: jax.grad(lambda t: t[ROWS].sum())(TABLE), {"scatter-add of indices that may be equal": 1}),
        (lambda: TABLE.at[ROWS].add(1.0), {"scatter-add of indices that may be equal": 1}),
        (lambda: TABLE.at[ROWS].add(1.0, unique_indices=True), {}),
        (lambda: jax.grad(lambda t: t[1:3].sum() + t[2].sum())(TABLE), {}),
        (lambda: convolution(IMAGES, KERNEL), {}),
        (lambda: jax.grad(lambda x: convolution(x, KERNEL).sum())(IMAGES), {"gradient of a convolution": 1}),
        (lambda: jax.grad(lambda k: convolution(IMAGES, k).sum())(KERNEL), {"gradient of a convolution": 1}),
        (
            lambda: jax.lax.scan(lambda t, r: (t.at[r].add(1.0), None), TABLE, jnp.stack([ROWS, ROWS]))[0],
            {"scatter-add of indices that may be equal": 1},
        ),
        (
            lambda: jax.grad(
                lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()
            )(IMAGES),
            {"select_and_scatter_add": 1},
        ),
    ],
)
def test_operations_that_sum_in_any_order_are_found(function, found):
    jaxpr = jax.make_jaxpr(function)().jaxpr
    kinds = {name: count for name, count in unrepeatable(jaxpr).items() if count}
    assert kinds == found


@pytest.mark.usefixtures("with_cudnn")
def test_the_usual_gradient_of_attention_is_found_and_the_deterministic_one_is_none():
    from genaffect_jax.kernels.attention import run_backend

    shapes = [jax.ShapeDtypeStruct((2, 16, 2, 64), jnp.bfloat16)] * 3

    def gradient(*arrays):
        return jax.grad(lambda q: run_backend("cudnn", q, *arrays[1:], None, False)[0].astype(jnp.float32).sum())(
            arrays[0]
        )

    kinds = []
    for on in (False, True):
        with compiling_for("gpu"), deterministic(on):
            kinds.append(sorted(unrepeatable(jax.make_jaxpr(gradient)(*shapes).jaxpr)))
    assert kinds == [["gradient of cuDNN's attention in its usual form"], []]


def test_devices_that_were_not_measured_are_named():
    def mesh(platform, count):
        return dataclasses.make_dataclass("Mesh", ["devices", "size"])(
            np.array([dataclasses.make_dataclass("Device", ["platform"])(platform)] * count), count
        )

    assert [unmeasured(mesh("cpu", 8)), unmeasured(mesh("gpu", 1))] == [None, None]
    assert "NCCL" in unmeasured(mesh("gpu", 2))
    assert "tpu devices" in unmeasured(mesh("tpu", 1))
