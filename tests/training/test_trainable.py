"""What trains is chosen by patterns that leave no parameter undecided, and the rest costs no training state."""

import dataclasses
import io
import runpy
from pathlib import Path

import jax
import pytest
from rich.console import Console

from genaffect_jax.config import MeshConfig, TrainConfig
from genaffect_jax.errors import ConfigError
from genaffect_jax.models.build import build_networks
from genaffect_jax.parallel.mesh import make_mesh
from genaffect_jax.training.denoiser.task import train_denoiser
from genaffect_jax.training.optimizer import make_optimizer
from genaffect_jax.training.state import abstract_state
from genaffect_jax.training.trainable import describe, freeze


@pytest.fixture(scope="module")
def denoiser(tiny_model):
    return build_networks(tiny_model)[0]


def trained(network, *trainable):
    return freeze(network, TrainConfig(trainable=trainable)).trainable


def test_everything_is_all_but_the_position_table(denoiser):
    assert trained(denoiser, "everything") == denoiser.shapes.keys() - {"mmdit.position_table"}
    assert "all train" in describe(denoiser)


def test_adapters_are_the_branches_and_the_token_makers_with_their_null_tokens(denoiser):
    found = trained(denoiser, "adapters")
    base = [n for n in found if n.startswith("mmdit.") and ".identity." not in n and ".expression." not in n]
    assert not base
    assert {"identity_projector.null", "expression_projector.null", "expression_projector.base"} <= found
    assert found >= {n for n in denoiser.shapes if not n.startswith("mmdit.")}
    for branch in ("identity", "expression"):
        for part in ("key.kernel", "value.kernel", "key_norm.scale"):
            assert f"mmdit.segments.0.layers.{branch}.{part}" in found


def test_the_adapters_of_sd35_medium_are_those_parameters_that_its_released_weights_lack():
    from genaffect_jax.interop.diffusers.weights import TRANSFORMER

    config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "sd35_medium.py"))["config"]()
    network = build_networks(config.model)[0]
    released = {f"mmdit.{name}" for name in TRANSFORMER.network(config.model.mmdit).shapes}
    assert freeze(network, config.train).trainable == network.shapes.keys() - released


def test_the_first_pattern_that_matches_decides(denoiser):
    kernels = {n for n in denoiser.trainable if n.endswith(".kernel")}
    assert trained(denoiser, "!mmdit.out.*", "*.kernel", "!*") == kernels - {"mmdit.out.kernel"}
    assert trained(denoiser, "*.kernel", "!mmdit.*", "*") == kernels | {
        n for n in denoiser.trainable if not n.startswith("mmdit.")
    }


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        (["mmdit.*"], r"no pattern covers \d+ parameters \(expression_projector\..*'!\*' at the end"),
        (["mmdti.*", "*"], "'mmdti.*' has no effect: it matches no parameter"),
        (["*", "!mmdit.out.*"], "'!mmdit.out.*' has no effect: earlier patterns match all"),
        (["mmdit.position_table", "*"], "'mmdit.position_table' has no effect: it matches no parameter"),
        (
            ["adapter"],
            r"'adapter' has no effect.*presets are everything, adapters; names are like expression_projector",
        ),
        (["!*"], "no parameter is trained"),
    ],
)
def test_undecided_parameters_and_idle_patterns_are_errors_that_name_them(denoiser, trainable, words):
    with pytest.raises(ConfigError, match=words):
        trained(denoiser, *trainable)


def test_what_is_fixed_has_no_moments_no_average_and_lies_among_the_fixed(denoiser):
    config = TrainConfig(trainable=("adapters",))
    network = freeze(denoiser, config)
    state = abstract_state(network, make_optimizer(config), make_mesh(MeshConfig()))
    assert state.parameters.keys() == state.ema.keys() == network.trainable
    assert state.frozen_params.keys() == network.shapes.keys() - network.trainable
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert numbers == 2 * network.trainable_size < 2 * network.size


def test_a_wrong_pattern_stops_a_training_before_it_claims_its_folder(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, trainable=("adaptres",)))
    with pytest.raises(ConfigError, match="adaptres"):
        train_denoiser(config, tmp_path / "run", Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_the_start_says_how_many_of_how_many_parameters_train(denoiser):
    network = freeze(denoiser, TrainConfig(trainable=("expression_projector.*", "!*")))
    some = sum(s.size for name, s in denoiser.shapes.items() if name.startswith("expression_projector."))
    total = denoiser.size
    assert describe(network) == f"{some / 1e6:.2f} M of {total / 1e6:.2f} M parameters trained,"
    assert total == sum(s.size for name, s in denoiser.shapes.items() if name != "mmdit.position_table")
