"""From reference pictures and expressions to pictures: one jitted program (encode, denoise, decode)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from genaffect_jax.config import DType, ModelConfig
from genaffect_jax.diffusion.guidance import GuidanceMode, branch_drops, guided, repeat_branches
from genaffect_jax.diffusion.sampler import euler_sample, item_noise
from genaffect_jax.models.autoencoder import AutoencoderKL, normalise, to_uint8
from genaffect_jax.models.face_encoders import FaceEncoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.genaffect import BranchScales, GenAffect
from genaffect_jax.models.lora import LoraNetwork
from genaffect_jax.models.tiling import decode_tiled
from genaffect_jax.parallel.compiler import compiler_options

# Side of the pictures, in pixels, from which on they are decoded in tiles. Whole, SD3's autoencoder takes 2.6 GB for
# each picture of 1024 px, four times as much as for one of 512 px; in tiles 0.7 GB for any number of any size.
TILED_FROM = 1024

Program = Callable[..., UInt8[Array, "G E S S 3"]]


def build_networks(
    config: ModelConfig, dtype: DType = "float32"
) -> tuple[Functional[GenAffect], Functional[AutoencoderKL]]:
    """The generator and the autoencoder of a model, without parameters; `dtype` is the type of activations.

    Raises:
        ConfigError: `config.lora` does not fit the generator (see `models.lora.LoraNetwork`).
    """
    generator = Functional(lambda rngs: GenAffect(config, rngs=rngs, dtype=dtype))
    return (
        LoraNetwork(generator, config.lora) if config.lora.rank else generator,
        Functional(lambda rngs: AutoencoderKL(config.autoencoder, rngs=rngs, dtype=dtype)),
    )


def make_program(
    config: ModelConfig,
    generator: Functional[GenAffect],
    autoencoder: Functional[AutoencoderKL],
    mode: GuidanceMode = "decoupled",
    identity_encoder: Functional[FaceEncoder] | None = None,
) -> Program:
    """Builds the jitted program that draws sets.

    Its arguments are the generator's parameters; `frozen`, the arrays that never train: the parameters of
    "autoencoder" and, for models with face embeddings, of "identity_encoder", and for models with a text stream
    "prompts" (`models.prompts.Prompts`); `reference` uint8 [G, R, S, S, 3] with `reference_mask` [G, R], False where a
    reference is padding; `expression` [G, E, W]; `items` int [G, E], the number of each picture, which with `seed`
    alone decides its noise; `sigmas` [steps + 1], decreasing to 0; `guidance_identity` and `guidance_expression`;
    `scales` of the two branches; and with prompts `prompt` [G, E], each picture's row in them. The branch that drops
    both identity and expression has the negative prompt, the others have the picture's own.

    Conditions are encoded once, denoising is a scan, and all of it is one XLA program per shape: changing seed,
    guidance, scales, their intervals or the schedule does not recompile. What guidance does is in
    `diffusion.guidance`; mode "none" has no use for it and costs a third.
    """
    side = config.mmdit.sample_size
    channels = config.mmdit.in_channels

    @partial(jax.jit, compiler_options=compiler_options())
    def program(
        generator_parameters: Parameters,
        frozen: Mapping[str, Any],
        reference: UInt8[Array, "G R S S 3"],
        reference_mask: Bool[Array, "G R"],
        expression: Float[Array, "G E W"],
        items: Int[Array, "G E"],
        seed: Int[Array, ""],
        sigmas: Float[Array, steps_plus_1],
        guidance_identity: Float[Array, ""],
        guidance_expression: Float[Array, ""],
        scales: BranchScales,
        prompt: Int[Array, "G E"] | None = None,
    ) -> UInt8[Array, "G E S S 3"]:
        model = generator.merge(generator_parameters)
        pictures = autoencoder.merge(frozen["autoencoder"])
        groups, expressions = items.shape
        faces = normalise(reference)
        latents, embedding = pictures.to_latents(faces), None
        if identity_encoder is not None:
            embedding = repeat_branches(identity_encoder.merge(frozen["identity_encoder"])(faces), mode)
        drop_identity, drop_expression = branch_drops(mode, groups, expressions)
        text = pooled = None
        if prompt is not None:
            drop_text = drop_identity[:, None] & drop_expression
            text, pooled = frozen["prompts"].lookup(repeat_branches(prompt, mode), drop_text)
        conditions = model.conditions(
            repeat_branches(latents, mode),
            repeat_branches(reference_mask, mode),
            repeat_branches(expression, mode),
            drop_identity=drop_identity,
            drop_expression=drop_expression,
            embedding=embedding,
            text=text,
            pooled=pooled,
        )

        def velocity(noisy: Float[Array, "G E h w c"], sigma: Float[Array, ""]) -> Float[Array, "G E h w c"]:
            return model(noisy, jnp.full(noisy.shape[:2], sigma), conditions, *scales.at(sigma))

        noise = item_noise(seed, items, (side, side, channels))
        drawn = euler_sample(guided(velocity, mode, guidance_identity, guidance_expression), noise, sigmas)
        decode = partial(decode_tiled, pictures) if config.image_size >= TILED_FROM else pictures.decode
        return to_uint8(decode(pictures.unscaled(drawn)))

    return program
