"""Attention with scores of known bound: the bound, the way that sources take, and the kernel's lowering for a GPU.

The kernel itself needs a Hopper GPU: benchmarks/attention.py compares it with float64 there.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.dense_attention import brute_force, error, random_tokens, streams

from genaffect_jax.kernels import attention as attention_backends
from genaffect_jax.kernels import hopper_attention
from genaffect_jax.kernels.hopper_attention import max_free_attention
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.mmdit import attention
from genaffect_jax.models.mmdit import consistent_attention as consistent
from genaffect_jax.models.mmdit.attention import QKV, attend
from genaffect_jax.models.mmdit.consistent_attention import anchor_pool, consistent_attention
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.models.mmdit.score_bound import LARGEST_SCORE, score_bound


def plain(query: jax.Array, sources: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """What the kernel promises, with joined keys."""
    keys, values = (
        jnp.concatenate([jnp.repeat(source[i], len(query) // len(source[i]), 0) for source in sources], 1)
        for i in range(2)
    )
    return attend(query, keys, values).reshape(query.shape)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stands in for the kernel, and notes which keys it was given."""
    seen: list[tuple[int, ...]] = []

    def stand_in(query: jax.Array, sources: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        seen.append(tuple(key.shape[1] for key, _ in sources))
        return plain(query, sources)

    monkeypatch.setattr(hopper_attention, "max_free_attention", stand_in)
    for module in (consistent, attention_backends):
        monkeypatch.setattr(module, "has_max_free_attention", lambda dtype, size: True)
    return seen


@pytest.mark.parametrize(("anchors", "fraction"), [(5, 0.5), (2, 0.3), (5, 1.0)])
def test_own_keys_and_pool_in_one_pass_are_consistent_attention(without_gpu, anchors: int, fraction: float) -> None:
    image, text = (QKV(*map(jnp.asarray, s)) for s in streams(1, 2, 5, 13, 3))
    tokens = random_tokens(0, 13, fraction)
    shared = len(tokens.shared)
    pool = anchor_pool(image, tokens, anchors)
    found = consistent_attention(image, text, tokens, pool, anchors=anchors, max_free=True)
    assert error(list(map(np.asarray, found)), brute_force(image, text, tokens, anchors)) < 1e-6
    expected = [(13 - shared + 3, anchors * shared), (13 + 3, anchors * shared)]
    assert without_gpu == expected[: 1 if anchors == 5 else 2]


def test_only_long_plain_attention_of_full_tiles_takes_the_kernel(without_gpu) -> None:
    def call(length: int, **options: object) -> None:
        query = jnp.ones((1, length, 1, 8))
        attend(query, query[:, :4], query[:, :4], **options)

    call(1024 - 64, max_free=True)
    call(1357, max_free=True)
    call(1024)
    call(1024, max_free=True, return_lse=True)
    call(1024, mask=jnp.ones((1, 4), bool), max_free=True)
    assert without_gpu == []
    for length in (1024, 4096, 4429):
        call(length, max_free=True)
    assert without_gpu == [(4,)] * 3


@pytest.mark.parametrize("dual", [(), (0, 1)])
def test_no_score_of_a_network_is_above_its_bound(tiny_model, monkeypatch, dual: tuple[int, ...]) -> None:
    config = dataclasses.replace(tiny_model.mmdit, dual_attention_layers=dual, scan_layers=False)
    network = Functional(lambda rngs: MMDiT(config, branches=None, rngs=rngs))
    rng = np.random.default_rng(0)
    parameters = {
        name: jnp.asarray(rng.standard_normal(value.shape), value.dtype) if "norm" in name else value
        for name, value in network.init(jax.random.key(0)).items()
    }
    largest: list[float] = []

    def watching(query, key, value, mask=None, **options):
        scores = jnp.einsum("...qnh,...knh->...nqk", query, key) / np.sqrt(query.shape[-1])
        jax.debug.callback(lambda x: largest.append(float(x)), jnp.abs(scores).max())
        return attend(query, key, value, mask, **options)

    monkeypatch.setattr(attention, "attend", watching)
    monkeypatch.setattr("genaffect_jax.models.mmdit.projections.attend", watching)
    denoiser = network.merge(parameters)
    side = config.sample_size
    latents = jax.random.normal(jax.random.key(1), (1, 2, side, side, config.in_channels))
    jax.block_until_ready(denoiser(latents, jnp.full((1, 2), 0.5), denoiser.project_conditions()))
    jax.effects_barrier()
    bound = score_bound(parameters)
    assert len(largest) == config.num_layers + len(dual)
    assert 0.2 * bound < max(largest) <= bound


def test_the_bound_of_new_networks_is_that_of_their_heads_and_without_norms_there_is_none(tiny_model) -> None:
    cast_kernels = (1 + 2**-8) ** 2
    size = tiny_model.mmdit.attention_head_dim
    parameters = build_networks(tiny_model)[0].init(jax.random.key(0))
    assert score_bound(parameters) == pytest.approx(size**0.5 * cast_kernels)
    free = dataclasses.replace(tiny_model, mmdit=dataclasses.replace(tiny_model.mmdit, qk_norm="none"))
    assert score_bound(build_networks(free)[0].init(jax.random.key(0))) == float("inf")


@pytest.mark.parametrize("names", [[], ["segments.0.layers.qkv.query.kernel", "image_qkv.query.bias"]])
def test_parameters_of_another_network_have_no_bound(names: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"none of {len(names)} parameters is called \*image_qkv"):
        score_bound({name: jnp.zeros((8, 8)) for name in names})


def test_weights_within_the_largest_score_stay_in_the_range_of_float32() -> None:
    most = np.float32(np.exp(np.float64(LARGEST_SCORE)))
    assert np.isfinite(most * np.float32(2**15) * np.float32(2**10))
    assert np.float32(1) / most >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("sources", [[(4, 845), (2, 4096)], [(4, 7)], [(4, 128), (2, 5)]])
def test_the_kernel_lowers_for_a_gpu(sources: list[tuple[int, int]]) -> None:
    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    arrays = [(array(batch, keys, 2, 64),) * 2 for batch, keys in sources]
    lowered = jax.jit(max_free_attention).trace(array(4, 77, 2, 64), arrays).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.parametrize(
    ("query", "keys", "dtype", "message"),
    [
        ((4, 8, 2, 32), 4, "bfloat16", "heads of 32"),
        ((4, 8, 2, 64), 4, "float32", "float32"),
        ((4, 8, 2, 64), 3, "bfloat16", "for a batch of 4"),
        ((4, 8, 2, 64), 0, "bfloat16", "for a batch of 4"),
    ],
)
def test_what_the_kernel_does_not_take_is_named(query: tuple[int, ...], keys: int, dtype: str, message: str) -> None:
    key = jnp.zeros((max(keys, 1), 5 if keys else 0, *query[2:]), dtype)
    with pytest.raises(ValueError, match=message):
        max_free_attention(jnp.zeros(query, dtype), [(key, key)])
