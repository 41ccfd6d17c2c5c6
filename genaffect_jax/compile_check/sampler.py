"""The sampler as a program for chips that this machine does not have, made of shapes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.prompts.table import all_prompts
from genaffect_jax.diffusion.guidance import GUIDANCE_BRANCHES
from genaffect_jax.diffusion.sampler import evaluations
from genaffect_jax.diffusion.schedule import padded_sigmas
from genaffect_jax.inference.program import IMAGES, SamplerParams, SamplerSpec, SetInputs, make_program
from genaffect_jax.models.autoencoder.model import AutoencoderKL
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.face_encoders.encoder import load_conditioning_encoder
from genaffect_jax.models.flops import forward_flops
from genaffect_jax.models.functional import Functional
from genaffect_jax.models.prompts import Prompts
from genaffect_jax.parallel.xla import compiling_for


def on(sharding: NamedSharding, tree: Any) -> Any:
    """The shapes and types of a tree of arrays or shapes, all with one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def frozen_shapes(config: DenoiserRun, autoencoder: Functional[AutoencoderKL], place: NamedSharding) -> dict[str, Any]:
    """Shapes of the frozen components of training and sampling: autoencoder, identity encoder, prompt table.

    The table is that of `python -m genaffect_jax.prepare prompts`: all prompts, in bfloat16.

    Raises:
        WeightsError: the weight file of `model.identity_encoder`, whose header gives its sizes, is missing or damaged.
    """
    frozen_components: dict[str, Any] = {"autoencoder": autoencoder.shapes}
    if config.model.identity_encoder:
        frozen_components["identity_encoder"] = load_conditioning_encoder(
            config.model.identity_encoder, "identity"
        ).parameters
    length, network = config.text_tokens, config.model.mmdit
    if length is not None:
        count = len(all_prompts(config.text))
        shapes: Any = (
            jax.ShapeDtypeStruct((count, length, network.joint_attention_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct((count, network.pooled_projection_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        frozen_components["prompts"] = Prompts(*shapes)
    return on(place, frozen_components)


def lower_sampler(
    config: DenoiserRun, mesh: Mesh, spec: SamplerSpec, images: int, *, references: int = 1, steps: int = 24
) -> jax.stages.Lowered:
    """The program of one chunk as `Pipeline` runs it on several chips: each holds all weights and makes its own images.

    Args:
        config: sizes; kernels have the type that they are multiplied in, other parameters are float32.
        mesh: the devices; their layout does not matter.
        spec: guidance and consistent attention; `spec.pool` must not be "given".
        images: images on each chip at once, anchors included.
        references: reference images of the person.
        steps: denoising steps.
    """
    chips = Mesh(mesh.devices.reshape(-1), (IMAGES,))
    whole, cut = (NamedSharding(chips, PartitionSpec(*spec)) for spec in ((), (None, IMAGES)))
    denoiser, autoencoder = build_networks(config.model, config.train.compute_dtype)
    network, side, total = config.model.mmdit, config.model.image_size, images * chips.size
    encoder = config.model.identity_encoder
    noise_ids = jax.ShapeDtypeStruct((1, total), jnp.int32, sharding=cut)
    arrays: Any = (
        jax.ShapeDtypeStruct((1, references, side, side, 3), jnp.uint8, sharding=whole),
        jax.ShapeDtypeStruct((1, references), jnp.bool_, sharding=whole),
        jax.ShapeDtypeStruct((1, total, config.model.conditioning.expression_width), jnp.float32, sharding=cut),
        noise_ids,
        noise_ids if network.reads_prompts else None,
    )
    params = on(whole, SamplerParams.plain(network.num_layers, padded_sigmas(steps, 1.0), steps))
    with compiling_for(mesh.devices.flat[0].platform):
        program = make_program(
            config.model,
            denoiser,
            autoencoder,
            load_conditioning_encoder(encoder, "identity").network if encoder else None,
            chips,
        )
        return program.lower(  # type: ignore[attr-defined]
            on(whole, jax.eval_shape(denoiser.cast_kernels, denoiser.shapes)),
            frozen_shapes(config, autoencoder, whole),
            SetInputs(*arrays),
            params,
            spec=spec,
        )


def sampler_flops(config: DenoiserRun, spec: SamplerSpec, images: int, steps: int) -> float:
    """Operations of one chip for one chunk, without references, conditions and decoding, which are computed once."""
    conditioning, network = config.model.conditioning, config.model.mmdit
    length = config.text_tokens
    once = forward_flops(
        network,
        images * len(GUIDANCE_BRANCHES[spec.mode]),
        network.sample_size,
        network.register_tokens if length is None else length,
        identity_tokens=conditioning.identity_tokens or network.image_tokens,
        expression_tokens=conditioning.expression_tokens,
        # An anchor attends to the shared tokens of the other anchors only; that difference is neglected.
        others=spec.anchors * spec.shared,
    )
    return once.total * evaluations(spec.solver, steps)
