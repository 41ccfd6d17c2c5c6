"""Patterns of parameter names: each says of a real network what its docstring says."""

import dataclasses
from fnmatch import fnmatchcase

import jax
import numpy as np
import pytest

from genaffect_jax.config import LoraConfig
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.mmdit.model import MMDiT
from genaffect_jax.models.parameter_names import (
    ADAPTERS,
    ATTENTIONS,
    LORA_TARGETS,
    MMDIT,
    QUERY_KERNEL,
    STACKED,
    branch_key_kernels,
)


@pytest.fixture(scope="module")
def network(tiny_model):
    """A denoiser of three segments: a dual block, a plain one and the last."""
    sizes = dataclasses.replace(tiny_model.mmdit, num_layers=3, dual_attention_layers=(0,))
    return build_networks(dataclasses.replace(tiny_model, mmdit=sizes))[0]


def in_blocks(network) -> list[tuple[int, str]]:
    """Segment and name within the block of every parameter of a block."""
    found = [STACKED.fullmatch(name.removeprefix(MMDIT)) for name in network.shapes if name.startswith(MMDIT)]
    return [(int(match[1]), match[2]) for match in found if match]


def test_adapters_are_all_that_the_base_model_lacks(network, tiny_model) -> None:
    sizes = dataclasses.replace(tiny_model.mmdit, num_layers=3, dual_attention_layers=(0,))
    base = Functional(lambda rngs: MMDiT(sizes, branches=None, rngs=rngs))
    matching = {name for name in network.shapes if any(fnmatchcase(name, pattern) for pattern in ADAPTERS)}
    assert matching == network.shapes.keys() - {f"{MMDIT}{name}" for name in base.shapes}
    for pattern in ADAPTERS:
        assert any(fnmatchcase(name, pattern) for name in network.shapes), pattern


def test_the_default_of_lora_is_the_kernels_around_attention(network) -> None:
    assert LoraConfig().targets == LORA_TARGETS
    matching = {
        part
        for _, part in in_blocks(network)
        if any(fnmatchcase(f"{MMDIT}segments.0.layers.{part}", p) for p in LORA_TARGETS)
    }
    streams = [part for attention in ATTENTIONS for part in attention]
    projections = {f"{part}.{name}.kernel" for part in streams for name in ("query", "key", "value")}
    assert matching == projections | {"image_out.kernel", "text_out.kernel", "image_attention.out.kernel"}


def test_every_block_has_one_query_kernel_and_every_attention_with_norms_is_listed(network) -> None:
    parts = in_blocks(network)
    assert sorted(segment for segment, part in parts if part == QUERY_KERNEL) == [0, 1, 2]
    assert sum(name.endswith(QUERY_KERNEL) for name in network.shapes) == 3
    normed = {part.removesuffix(".query_norm.scale") for _, part in parts if part.endswith(".query_norm.scale")}
    assert normed == {part for attention in ATTENTIONS for part in attention}


def test_branch_keys_are_the_kernels_that_start_as_the_image_queries(network) -> None:
    parameters = network.init(jax.random.key(0))
    queries = [name for name in parameters if name.endswith(QUERY_KERNEL)]
    copies = [key for query in queries for key in branch_key_kernels(query)]
    assert len(copies) == len(set(copies)) == 6
    for query in queries:
        for key in branch_key_kernels(query):
            np.testing.assert_array_equal(parameters[key], parameters[query])
