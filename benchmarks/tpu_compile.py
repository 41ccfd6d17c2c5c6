"""Compiles the sampler for TPUs on a machine that has none: `python benchmarks/tpu_compile.py --help`.

Needs the `libtpu` wheel that belongs to the installed jax (`pip install libtpu`): it holds the compiler and runs
nothing. The model's weights are never made, only their shapes. What is compiled is the whole program of a chunk: encode
the references, denoise, decode, spread over all chips of the topology.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any, Literal

# A TPU compiler on a machine without TPUs: JAX itself runs on the CPU, and the compiler asks nobody about its host.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling needs no chip of its own

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genaffect_jax.config import ConditioningConfig, DType, ModelConfig
from genaffect_jax.diffusion.schedule import padded_sigmas
from genaffect_jax.generation import PICTURES, Controls, Kind, SetInputs, build_networks, make_program
from genaffect_jax.models import autoencoder, mmdit
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.compiler import compiling_for

REFERENCES = 4
PROMPTS = 138


def sd35_medium(size: int) -> ModelConfig:
    """The networks of `configs/sd35_medium.py` for pictures of `size` pixels."""
    return ModelConfig(
        mmdit=dataclasses.replace(mmdit.sd35_medium(), sample_size=size // 8),
        autoencoder=autoencoder.sd3(),
        conditioning=ConditioningConfig(identity_layers=2, identity_tokens=64),
        transformer_weights="none", autoencoder_weights="none",
    )  # fmt: skip


def avatar_tiny(size: int) -> ModelConfig:
    """The networks of `configs/avatar_tiny.py`, which are for pictures of 128 pixels."""
    return ModelConfig(
        mmdit=mmdit.avatar_tiny(), autoencoder=autoencoder.avatar_tiny(),
        conditioning=ConditioningConfig(identity_layers=1), prediction="clean",
    )  # fmt: skip


MODELS = {"sd35_medium": sd35_medium, "avatar_tiny": avatar_tiny}


def lower_sampler(
    config: ModelConfig, kind: Kind, pictures: int, mesh: Mesh, *, dtype: DType = "bfloat16", steps: int = 24,
    text_tokens: int = 0,
) -> jax.stages.Lowered:  # fmt: skip
    """The program of one chunk, for the chips of a mesh that need not be there.

    Args:
        config: sizes.
        kind: guidance and sharing; `kind.pool` must not be "given".
        pictures: drawn on each chip at once, anchors included.
        mesh: of one axis, `PICTURES`.
        dtype: type of weights and activations.
        steps: denoising steps.
        text_tokens: of each prompt, for models with a text stream; else 0.
    """
    whole, cut = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, PICTURES)))

    def placed(tree: Any, sharding: NamedSharding = whole) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def weights(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        return placed({name: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)) for name, x in shapes.items()})

    generator, pictures_network = build_networks(config, dtype)
    frozen: dict[str, Any] = {"autoencoder": weights(pictures_network.shapes)}
    network, side, total = config.mmdit, config.image_size, pictures * mesh.size
    if text_tokens:
        frozen["prompts"] = placed(
            Prompts(
                jax.ShapeDtypeStruct((PROMPTS, text_tokens, network.joint_attention_dim), jnp.bfloat16),
                jax.ShapeDtypeStruct((PROMPTS, network.pooled_projection_dim), jnp.bfloat16),
                jax.ShapeDtypeStruct((), jnp.int32),
            )
        )
    items = jax.ShapeDtypeStruct((1, total), jnp.int32, sharding=cut)
    inputs = SetInputs(
        placed(jax.ShapeDtypeStruct((1, REFERENCES, side, side, 3), jnp.uint8)),
        placed(jax.ShapeDtypeStruct((1, REFERENCES), jnp.bool_)),
        jax.ShapeDtypeStruct((1, total, config.conditioning.expression_width), jnp.float32, sharding=cut),
        items, items if text_tokens else None,
    )  # fmt: skip
    controls = placed(Controls.plain(network.num_layers, padded_sigmas(steps, 1.0), steps))
    with compiling_for("tpu"):
        program = make_program(config, generator, pictures_network, mesh=mesh)
        return program.lower(weights(generator.shapes), frozen, inputs, controls, kind=kind)  # type: ignore[attr-defined]


def topology_mesh(topology: str) -> Mesh:
    """All chips of a topology such as `v5e:2x2` as one axis."""
    return Mesh(np.array(topologies.get_topology_desc(topology, platform="tpu").devices), (PICTURES,))


def main(
    model: Literal["sd35_medium", "avatar_tiny"] = "sd35_medium",
    topology: str = "v5e:2x2",
    size: int = 512,
    anchors: int = 8,
    chunk: int = 8,
    consistency: float = 0.5,
    text_tokens: int = 333,
    guidance: Literal["none", "joint", "decoupled"] = "decoupled",
    pool: Literal["made", "kept"] = "made",
) -> None:
    """Compiles one program and prints its memory on each chip.

    Args:
        model: whose networks.
        topology: kind of chip and how many, in libtpu's words: `v5e:2x2`, `v6e:4x4`.
        size: sides of the pictures, in pixels; `avatar_tiny` has 128.
        anchors: pictures that form the pool.
        chunk: pictures beside them on each chip; with `pool kept` the anchors are drawn alone.
        consistency: share of their tokens that anchors show.
        text_tokens: of each prompt (`sd35_medium`).
        guidance: its branches.
        pool: `made`: anchors beside the chunk in one call; `kept`: the first call of a set whose later calls find the
            anchors' keys and values in the bank.
    """
    config, mesh = MODELS[model](size), topology_mesh(topology)
    tokens = (config.mmdit.sample_size // config.mmdit.patch_size) ** 2
    kind = Kind(
        mode=guidance, shared=round(consistency * tokens), anchors=anchors, pool=pool,
        pictures_from=anchors if pool == "made" else 0,
    )  # fmt: skip
    start = time.perf_counter()
    lowered = lower_sampler(
        config, kind, anchors + (chunk if pool == "made" else 0), mesh,
        text_tokens=0 if config.mmdit.register_tokens else text_tokens,
    )  # fmt: skip
    traced = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    report = {
        "model": model, "topology": topology, "chips": mesh.size, "device": mesh.devices.flat[0].device_kind,
        "jax": jax.__version__, "tpu_kernels": lowered.as_text().count("tpu_custom_call"),
        "trace_s": round(traced - start, 1), "compile_s": round(time.perf_counter() - traced, 1),
        "arguments_gib": round(memory.argument_size_in_bytes / 2**30, 3),
        "results_gib": round(memory.output_size_in_bytes / 2**30, 3),
        "scratch_gib": round(memory.temp_size_in_bytes / 2**30, 3),
        "code_gib": round(memory.generated_code_size_in_bytes / 2**30, 3),
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    tyro.cli(main)
