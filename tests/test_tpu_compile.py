"""The sampler compiles for TPUs on a machine without one (needs the libtpu wheel that belongs to the installed jax)."""

import dataclasses
import importlib.util

import pytest

from genaffect_jax.config import ModelConfig
from genaffect_jax.generation import Kind

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu"),
]


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("tpu_compile")


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:4x4"])
def test_the_sampler_with_sharing_compiles_for_every_chip_of_a_topology(
    benchmark, tiny_model: ModelConfig, topology: str
) -> None:
    # Odd text lengths, a block with a second attention, heads of 64 as in SD3.5: whatever a kernel could refuse.
    network = dataclasses.replace(
        tiny_model.mmdit, attention_head_dim=64, joint_attention_dim=128, caption_projection_dim=128,
        register_tokens=5, dual_attention_layers=(0,),
    )  # fmt: skip
    config = dataclasses.replace(tiny_model, mmdit=network)
    mesh = benchmark.topology_mesh(topology)
    kind = Kind(mode="decoupled", shared=8, anchors=2, pictures_from=2)
    lowered = benchmark.lower_sampler(config, kind, 3, mesh, steps=4)
    # Three log-sum-exp attentions of a consistent layer (anchors' own, others' own, pool) are kernels at the least.
    assert lowered.as_text().count("tpu_custom_call") >= 3
    memory = lowered.compile().memory_analysis()
    # One picture of 32 px on each chip: the cut over the chips is in the program.
    assert memory.output_size_in_bytes < 2 * 4096 * 2
