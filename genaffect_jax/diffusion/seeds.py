"""Seeds of 64 bits as random keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

from genaffect_jax.config.sampling import LARGEST_SEED


def seed_words(seed: int) -> UInt32[np.ndarray, " 2"]:
    """The high and the low 32 bits of a seed, for programs that take it as an argument.

    Raises:
        ValueError: the seed is negative or has more than 64 bits.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed {seed}: must be 0 to {LARGEST_SEED}")
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def seed_key(words: UInt32[Array, " 2"] | UInt32[np.ndarray, " 2"]) -> Key[Array, ""]:
    """The key of `seed_words`: another one for each seed.

    For seeds below 2^31 it is `jax.random.key(seed)`. That function cuts larger seeds to their low 32 bits, or refuses
    them. The generator is always Threefry, whatever `jax_default_prng_impl` says.
    """
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
