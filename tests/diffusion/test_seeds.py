"""Every seed of 64 bits has a key of its own; small ones keep the key that JAX gives them."""

import jax
import numpy as np
import pytest

from genaffect_jax.config import SamplingConfig, TrainConfig
from genaffect_jax.diffusion.sampler import initial_noise
from genaffect_jax.diffusion.seeds import seed_key, seed_words
from genaffect_jax.errors import ConfigError

LARGE = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("seed", [0, 1, 1234567, 2**31 - 1])
def test_seeds_that_jax_takes_keep_its_key(seed):
    np.testing.assert_array_equal(
        jax.random.key_data(seed_key(seed_words(seed))), jax.random.key_data(jax.random.key(seed))
    )


def test_large_seeds_have_noise_of_their_own():
    noises = [np.asarray(initial_noise(seed_words(seed), np.arange(1), (8,))) for seed in [0, 1, *LARGE]]
    assert len({noise.tobytes() for noise in noises}) == len(noises)


def test_seeds_are_taken_by_the_configurations_and_refused_beyond():
    for seed in LARGE:
        assert SamplingConfig(seed=seed).seed == TrainConfig(seed=seed).seed == seed
    for seed in (-1, 2**64):
        for make in (SamplingConfig, TrainConfig):
            with pytest.raises(ConfigError, match=f"seed={seed}: must be (0 to|at most) 18446744073709551615"):
                make(seed=seed)
        with pytest.raises(ValueError, match="must be 0 to"):
            seed_words(seed)
