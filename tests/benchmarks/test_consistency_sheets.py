"""The consistency benchmark: what its figures mean."""

import pytest

from genaffect_jax.config import SamplingConfig


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("consistency_sheets")


@pytest.mark.parametrize(("steps", "layers"), [(2, 4), (8, 5), (24, 24)])
def test_every_setting_is_one_that_can_be_sampled_with(benchmark, steps, layers):
    settings = benchmark.settings_of(steps, layers)
    assert set(benchmark.SHOWN) <= set(settings)
    for changes in settings.values():
        drawn = SamplingConfig(**{"steps": steps, **changes})
        assert all(layer < layers for layer in drawn.consistency_layers)
        assert drawn.consistency_start < steps
    kinds = [n for n, c in settings.items() if "consistency_layers" in c]
    layers_used = [settings[n]["consistency_layers"] for n in kinds]
    assert sorted(layer for part in layers_used for layer in part) == list(range(layers))  # early and late are all
