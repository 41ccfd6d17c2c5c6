"""Low-rank additions: nothing at first, the formula later, the base untouched, and gone after merging."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.config import DataConfig, DenoiserRun, LoraConfig, MeshConfig, TrainConfig, to_json
from genaffect_jax.errors import WRONG_ARGUMENT, CheckpointError, ConfigError
from genaffect_jax.export import __main__ as export
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.layers import MLP
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.parallel.sharding import parameter_shardings
from genaffect_jax.pipeline import Pipeline
from genaffect_jax.training.denoiser.loss import make_denoiser_loss
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state, create_state
from genaffect_jax.training.step import device_batch, make_train_step
from genaffect_jax.training.trainable import freeze

RANK, ALPHA = 2, 6.0
TARGET = "mmdit.segments.0.layers.image_qkv.query.kernel"


@pytest.fixture(scope="module")
def config(tiny_model) -> DenoiserRun:
    """Adapters and low-rank additions."""
    return DenoiserRun(
        data=DataConfig(image_size=32, expressions_per_set=2),
        model=dataclasses.replace(tiny_model, lora=LoraConfig(rank=RANK, alpha=ALPHA)),
        train=TrainConfig(batch_size=8, learning_rate=1e-2, warmup_steps=0, trainable=("adapters",)),
    )


@pytest.fixture(scope="module")
def network(config) -> LoraNetwork:
    network = build_networks(config.model)[0]
    assert isinstance(network, LoraNetwork)
    return network


def random_base(network: LoraNetwork, mesh) -> dict[str, jax.Array]:
    """No gate is zero, as it would be in a new model, so that everything has a gradient."""
    rng = np.random.default_rng(0)
    shapes = network.base.shapes
    shardings = parameter_shardings(network.base.logical_axes, shapes, mesh)
    return {
        name: jax.device_put(np.asarray(0.2 * rng.standard_normal(s.shape), s.dtype), shardings[name])
        for name, s in shapes.items()
    }


@pytest.fixture(scope="module")
def start(config, network) -> dict[str, jax.Array]:
    mesh = make_mesh(MeshConfig())
    chosen, optimizer = freeze(network, config.train), make_optimizer(config.train)
    state = create_state(chosen, optimizer, mesh, 0, random_base(network, mesh))
    return jax.device_get({**state.parameters, **state.frozen_params})


@pytest.fixture(scope="module")
def workdir(config, network, tmp_path_factory):
    """The run folder of a training of two steps, on a mesh that cuts parameters, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    mesh = make_mesh(MeshConfig(fsdp=4))
    chosen, optimizer = freeze(network, config.train), make_optimizer(config.train)
    state = create_state(chosen, optimizer, mesh, 0, random_base(network, mesh))
    loss = make_denoiser_loss(config.flow, build_networks(config.model)[1])
    step = make_train_step(chosen, loss, optimizer, ema_decay=0.5, seed=0, mesh=mesh)
    rng = np.random.default_rng(0)
    batch = {
        "reference": rng.standard_normal((8, 1, 8, 8, 4), np.float32),
        "target": rng.standard_normal((8, 2, 8, 8, 4), np.float32),
        "expression": rng.random((8, 2, 40), np.float32),
    }
    checkpoints = Checkpoints(folder, keep=2)
    for _ in range(2):
        state, _ = step(state, {}, device_batch(batch, mesh))
        checkpoints.save(state, {}, to_json(config))
    checkpoints.close()
    shutil.copyfile(config.model.autoencoder_weights, folder / "autoencoder.safetensors")
    return folder


def restored(config, network, workdir):
    chosen = freeze(network, config.train)
    return Checkpoints(workdir).restore(abstract_state(chosen, make_optimizer(config.train), make_mesh(MeshConfig())))[
        0
    ]


def test_a_new_addition_changes_no_kernel_and_the_base_starts_as_without(network):
    parameters = network.init(jax.random.key(3))
    assert parameters.keys() == network.shapes.keys()
    plain, base = network.plain(parameters), network.base.init(jax.random.key(3))
    assert plain.keys() == base.keys()
    for name, value in base.items():
        np.testing.assert_array_equal(plain[name], value, err_msg=name)
    a = parameters[f"{TARGET}.lora_a"]
    assert a.shape == (1, 32, RANK)
    assert float(jnp.std(a)) == pytest.approx(32**-0.5, rel=0.3)
    others = [parameters[f"{name}.lora_a"] for name in network.targets if name != TARGET]
    assert not any(np.array_equal(a, other) for other in others)


def test_the_addition_is_alpha_over_rank_times_the_product_in_every_layer():
    from flax import nnx

    from genaffect_jax.models.layer_stack import LayerStack
    from genaffect_jax.models.layers import Linear

    def make(rngs):
        return LayerStack(
            lambda rngs: Linear(3, 5, axes=("embed", "heads"), rngs=rngs), 2, scan=True, remat="none", rngs=rngs
        )

    network = LoraNetwork(Functional(make), LoraConfig(rank=4, alpha=8.0, targets=("layers.kernel",)))
    assert network.logical_axes["layers.kernel.lora_a"] == ("layers", "embed", None)
    assert network.logical_axes["layers.kernel.lora_b"] == ("layers", None, "heads")
    parameters = network.init(nnx.Rngs(0).params())
    b = jax.random.normal(jax.random.key(1), (2, 4, 5))
    parameters["layers.kernel.lora_b"] = b
    kernel = network.merge(parameters).layers.kernel[...]
    for layer in range(2):
        product = np.asarray(parameters["layers.kernel.lora_a"][layer]) @ np.asarray(b[layer])
        np.testing.assert_allclose(kernel[layer], parameters["layers.kernel"][layer] + 2.0 * product, atol=1e-5)


def test_kernels_can_be_rounded_before_they_are_multiplied_but_not_those_that_get_an_addition():
    base = Functional(lambda rngs: MLP(4, 8, 4, rngs=rngs, dtype=jnp.bfloat16))
    types = {name: x.dtype for name, x in base.cast_kernels(base.init(jax.random.key(0))).items()}
    assert types == {
        "up.kernel": jnp.bfloat16,
        "up.bias": jnp.float32,
        "down.kernel": jnp.bfloat16,
        "down.bias": jnp.float32,
    }
    network = LoraNetwork(base, LoraConfig(rank=1, targets=("up.kernel",)))
    cast_kernels = network.cast_kernels(network.init(jax.random.key(0)))
    assert {name for name, x in cast_kernels.items() if x.dtype == jnp.bfloat16} == {"down.kernel"}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("mmdit.segments.*qvk*",), r"'mmdit\.segments\.\*qvk\*' matches no parameter; kernels are named like"),
        (("mmdit.out.*",), r"'mmdit\.out\.\*' matches what is no kernel of a linear layer: \['mmdit\.out\.bias'\]"),
        (("mmdit.position_table",), "matches what is no kernel"),
    ],
)
def test_targets_that_match_no_linear_kernel_are_named(network, targets, words):
    with pytest.raises(ConfigError, match=words):
        LoraNetwork(network.base, LoraConfig(rank=1, targets=targets))


def test_target_kernels_never_train_and_factors_always_do(network):
    for trainable in (("everything",), ("adapters",), ("mmdit.out.kernel", "!*")):
        chosen = freeze(network, TrainConfig(trainable=trainable))
        assert chosen.lora_params <= chosen.trainable
        assert not chosen.trainable & set(network.targets)
    with pytest.raises(ConfigError, match="has no effect: it matches no parameter"):
        freeze(network, TrainConfig(trainable=(TARGET, "*")))


def test_training_moves_factors_and_adapters_and_leaves_every_bit_of_the_base(config, network, start, workdir):
    state = restored(config, network, workdir)
    assert state.frozen_params.keys() >= set(network.targets)
    for name, value in state.frozen_params.items():
        np.testing.assert_array_equal(value, start[name], err_msg=name)
    assert state.parameters.keys() == state.ema.keys() == freeze(network, config.train).trainable
    for name in (
        f"{TARGET}.lora_a",
        f"{TARGET}.lora_b",
        "identity_projector.embed.kernel",
        "expression_projector.null",
        "mmdit.segments.0.layers.identity.key.kernel",
    ):
        assert np.abs(np.asarray(state.parameters[name]) - start[name]).max() > 0, name


def test_checkpoints_hold_what_trains_alone_and_the_rest_lies_beside_them_once(config, network, start, workdir):
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    assert (workdir / "frozen_params").is_dir()
    found = Checkpoints(workdir).averaged_parameters(network, make_mesh(MeshConfig()))
    assert found.keys() == network.shapes.keys()
    np.testing.assert_array_equal(found[TARGET], start[TARGET])
    ema = restored(config, network, workdir).ema  # the names in a checkpoint must be exactly those that train
    np.testing.assert_array_equal(found[f"{TARGET}.lora_b"], ema[f"{TARGET}.lora_b"])


def test_a_run_folder_that_lost_its_frozen_part_says_so(network, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("frozen_params"))
    with pytest.raises(CheckpointError, match="frozen_params, which would hold frozen parameters, is not there"):
        Checkpoints(tmp_path / "run").averaged_parameters(network, make_mesh(MeshConfig()))


def test_merging_gives_a_folder_that_samples_the_same_without_additions_and_trains_no_further(
    config, network, workdir, tmp_path
):
    merged = tmp_path / "merged"
    assert export.main(["merge", "--model", str(workdir), "--out", str(merged)]) == 0
    with_lora, without = (Pipeline.load(f, devices=jax.devices()[:1]) for f in (workdir, merged))
    assert with_lora.config.model.lora.rank == RANK
    assert without.config.model.lora.rank == 0
    parameters = Checkpoints(workdir).averaged_parameters(network, make_mesh(MeshConfig()))
    plain = Checkpoints(merged).averaged_parameters(network.base, make_mesh(MeshConfig()))
    assert float(jnp.abs(plain[TARGET] - parameters[TARGET]).max()) > 1e-4
    expected = network.plain(parameters)
    assert plain.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(plain[name], value, atol=1e-6, err_msg=name)
    drawn = [p("seed:3", "joy, fear", steps=1).images.astype(int) for p in (with_lora, without)]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert drawn[0].std() > 1

    base = dataclasses.replace(config, model=without.config.model)
    with pytest.raises(CheckpointError, match="does not fit"):
        restored(base, network.base, merged)
    assert export.main(["merge", "--model", str(merged), "--out", str(tmp_path / "again")]) == WRONG_ARGUMENT
    assert export.main(["merge", "--model", str(workdir), "--out", str(merged)]) == WRONG_ARGUMENT
    assert not (tmp_path / "again").exists()
