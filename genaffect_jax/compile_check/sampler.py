"""The sampler as a program for chips that need not be there: only shapes are made, no arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genaffect_jax.config import Config
from genaffect_jax.data.prompts.templates import all_prompts
from genaffect_jax.diffusion.guidance import BRANCHES
from genaffect_jax.diffusion.sampler import evaluations
from genaffect_jax.diffusion.schedule import padded_sigmas
from genaffect_jax.inference.program import PICTURES, Controls, Kind, SetInputs, make_program
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.face_encoders.encoder import load_conditioning_encoder
from genaffect_jax.models.flops import forward_flops
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.xla import compiling_for


def on(sharding: NamedSharding, tree: Any) -> Any:
    """The shapes of a tree of arrays or shapes, at one place."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def frozen_shapes(config: Config, autoencoder: Functional[AutoencoderKL], place: NamedSharding) -> dict[str, Any]:
    """What training and drawing read and do not change: autoencoder, identity encoder, table of prompts.

    The table is the one that `python -m genaffect_jax.prepare prompts` makes: all prompts, in bfloat16.

    Raises:
        WeightsError: the weight file of `model.identity_encoder`, whose header says its sizes, is missing or damaged.
    """
    frozen: dict[str, Any] = {"autoencoder": autoencoder.shapes}
    if config.model.identity_encoder:
        frozen["identity_encoder"] = load_conditioning_encoder(config.model.identity_encoder, "identity").parameters
    length, network = config.text_tokens, config.model.mmdit
    if length is not None:
        count = len(all_prompts(config.text))
        shapes: Any = (
            jax.ShapeDtypeStruct((count, length, network.joint_attention_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct((count, network.pooled_projection_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        frozen["prompts"] = Prompts(*shapes)
    return on(place, frozen)


def lower_sampler(
    config: Config, mesh: Mesh, kind: Kind, pictures: int, *, references: int = 1, steps: int = 24
) -> jax.stages.Lowered:
    """The program of one chunk as `Pipeline` runs it on several chips: each has all weights and draws its own pictures.

    Args:
        config: sizes; kernels are of the type that they are multiplied in, other parameters float32.
        mesh: its devices draw; how they are laid out does not count.
        kind: guidance and sharing; `kind.pool` must not be "given".
        pictures: drawn on each chip at once, anchors included.
        references: pictures of the person.
        steps: denoising steps.
    """
    chips = Mesh(mesh.devices.reshape(-1), (PICTURES,))
    whole, cut = (NamedSharding(chips, PartitionSpec(*spec)) for spec in ((), (None, PICTURES)))
    generator, autoencoder = build_networks(config.model, config.train.compute_dtype)
    network, side, total = config.model.mmdit, config.model.image_size, pictures * chips.size
    encoder = config.model.identity_encoder
    items = jax.ShapeDtypeStruct((1, total), jnp.int32, sharding=cut)
    arrays: Any = (
        jax.ShapeDtypeStruct((1, references, side, side, 3), jnp.uint8, sharding=whole),
        jax.ShapeDtypeStruct((1, references), jnp.bool_, sharding=whole),
        jax.ShapeDtypeStruct((1, total, config.model.conditioning.expression_width), jnp.float32, sharding=cut),
        items,
        None if network.register_tokens else items,
    )
    controls = on(whole, Controls.plain(network.num_layers, padded_sigmas(steps, 1.0), steps))
    with compiling_for(mesh.devices.flat[0].platform):
        program = make_program(
            config.model,
            generator,
            autoencoder,
            load_conditioning_encoder(encoder, "identity").network if encoder else None,
            chips,
        )
        return program.lower(  # type: ignore[attr-defined]
            on(whole, jax.eval_shape(generator.rounded, generator.shapes)),
            frozen_shapes(config, autoencoder, whole),
            SetInputs(*arrays),
            controls,
            kind=kind,
        )


def sampler_flops(config: Config, kind: Kind, pictures: int, steps: int) -> float:
    """Operations of one chip for one chunk, without what is done once (references, conditions, decoding)."""
    conditioning, network = config.model.conditioning, config.model.mmdit
    length = config.text_tokens
    image = (network.sample_size // network.patch_size) ** 2
    once = forward_flops(
        network,
        pictures * len(BRANCHES[kind.mode]),
        network.sample_size,
        network.register_tokens if length is None else length,
        identity_tokens=conditioning.identity_tokens or image,
        expression_tokens=conditioning.expression_tokens,
        # An anchor sees the others' shares only; that difference is left out.
        others=kind.anchors * kind.shared,
    )
    return once.total * evaluations(kind.solver, steps)
