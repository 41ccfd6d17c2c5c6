"""From reference images and expressions to images: one jitted program (encode, denoise, decode)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from genaffect_jax.config import GuidanceMode, ModelConfig, Solver
from genaffect_jax.diffusion.guidance import GUIDANCE_BRANCHES, branch_drops, guided, repeat_branches
from genaffect_jax.diffusion.sampler import evaluations, initial_noise, sample
from genaffect_jax.diffusion.seeds import seed_key, seed_words
from genaffect_jax.models.autoencoder.model import AutoencoderKL, normalise, to_uint8
from genaffect_jax.models.autoencoder.tiling import decode_tiled
from genaffect_jax.models.face_encoders.networks import FaceEncoder
from genaffect_jax.models.functional import Functional, Parameters
from genaffect_jax.models.genaffect import BranchScales, GenAffect
from genaffect_jax.models.mmdit.attention import KeyValue
from genaffect_jax.models.mmdit.block_cache import BlockCache, Streams
from genaffect_jax.models.mmdit.consistent_attention import Sharing, Tokens, random_tokens
from genaffect_jax.models.mmdit.model import Conditions, MMDiTOutput
from genaffect_jax.parallel.xla import compiler_options

# Side in pixels from which images are decoded in tiles. SD3's autoencoder needs 2.6 GB to decode an image of 1024 px at
# once, four times as much as for 512 px, and 0.7 GB in tiles for any number of images of any size.
TILED_FROM = 1024
# Folded into the seed, so that the choice of shared tokens has no key in common with other uses of the seed.
TOKENS_PURPOSE = 0x746F6B65
# The mesh axis over which the images of a call are sharded.
IMAGES = "images"


@dataclass(frozen=True)
class SamplerSpec:
    """Static settings of the program; a new value compiles again."""

    mode: GuidanceMode = "none"
    """Guidance branches."""
    solver: Solver = "euler"
    """Solver of the flow's differential equation."""
    shared: int = 0
    """Number S of image tokens that every anchor shares."""
    anchors: int = 0
    """Number of anchors, the first images of each group; 0 if there are none or their KV cache is given."""
    pool: Literal["made", "kept", "given"] = "made"
    """Keys and values of the anchors: `made` in every evaluation, also `kept` as a result, or `given`."""
    guidance_limited: bool = False
    """Whether guidance is limited to some noise levels."""
    sharing_limited: bool = False
    """Whether sharing is limited to some layers or steps."""
    uses_block_cache: bool = False
    """Whether evaluations reuse the middle blocks' contribution of an earlier one."""
    first_decoded: int = 0
    """Place of the first image to decode; those before it are denoised only."""

    @property
    def shares(self) -> bool:
        """Whether the images of a group share tokens."""
        return (self.anchors > 0 or self.pool == "given") and self.shared > 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SetInputs:
    """The people and images of one call: G groups of E images."""

    reference: UInt8[Array, "G R S S 3"]
    """References of each person."""
    reference_mask: Bool[Array, "G R"]
    """False where a reference is padding."""
    expression: Float[Array, "G E W"]
    """Expression vector of each image."""
    noise_ids: Int[Array, "G E"]
    """Number of each image that, with the seed, decides its noise."""
    prompt: Int[Array, "G E"] | None = None
    """Row of each image in the prompt table, for models with a text stream."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplerParams:
    """Traced settings of the program; a new value does not compile again."""

    seed: UInt32[Array, " 2"]
    """Seed of the noise and of the choice of shared tokens, as `diffusion.seeds.seed_words`."""
    sigmas: Float[Array, " N+1"]
    """Falling noise levels, padded with zeros."""
    steps: Int[Array, ""]
    """Number of steps, without the padding."""
    guidance_identity: Float[Array, ""]
    """See `diffusion.guidance`."""
    guidance_expression: Float[Array, ""]
    """See `diffusion.guidance`."""
    guidance_interval: Float[Array, " 2"]
    """Lowest and highest noise level of guidance."""
    scales: BranchScales
    """Weights of the two branches."""
    sharing_layers: Bool[Array, " layers"]
    """Layers with sharing (`SamplerSpec.sharing_limited`)."""
    sharing_interval: Float[Array, " 2"]
    """Noise levels with sharing, the lower end excluded (`SamplerSpec.sharing_limited`)."""
    block_cache_interval: Int[Array, ""]
    """Evaluations that share one computation of the middle blocks (`SamplerSpec.uses_block_cache`)."""
    candidates: Bool[Array, " L"] | None = None
    """Image tokens that may be shared; None for all."""

    @classmethod
    def plain(cls, layers: int, sigmas: Float[np.ndarray, " N+1"], steps: int, seed: int = 0) -> SamplerParams:
        """No guidance, both branches as trained, nothing limited."""
        everywhere = jnp.array([0.0, 1.0], jnp.float32)
        return cls(
            seed=jnp.asarray(seed_words(seed)),
            sigmas=jnp.asarray(sigmas),
            steps=jnp.int32(steps),
            guidance_identity=jnp.float32(1),
            guidance_expression=jnp.float32(1),
            guidance_interval=everywhere,
            scales=BranchScales.of(layers),
            sharing_layers=jnp.ones(layers, bool),
            sharing_interval=everywhere,
            block_cache_interval=jnp.int32(1),
        )


# Keys and values of the anchors at every evaluation: [evaluations, layers, branches * G, K, N, H].
AnchorCache = KeyValue


class SamplerCarry(NamedTuple):
    """State passed from one evaluation to the next."""

    kv_cache: AnchorCache | None = None
    """The anchor KV cache so far, zeros for later evaluations; None unless it is kept."""
    block_deltas: Streams | None = None
    """The middle blocks' contribution when they were last computed; None without a block cache."""


# program(parameters, frozen_components, inputs, params, kv_cache, spec=...): images, the KV cache if it is kept, and
# which images were finite before they were rounded to bytes.
Program = Callable[..., tuple[UInt8[Array, "G E S S 3"], AnchorCache | None, Bool[Array, "G E"]]]


def make_program(
    config: ModelConfig,
    denoiser: Functional[GenAffect],
    autoencoder: Functional[AutoencoderKL],
    identity_encoder: Functional[FaceEncoder] | None = None,
    mesh: Mesh | None = None,
) -> Program:
    """Builds the jitted program that samples sets.

    Its arguments are

    - the denoiser's parameters;
    - `frozen_components`: the parameters of "autoencoder"; of "identity_encoder" for models with face embeddings; and
      "prompts" (`models.prompts.Prompts`) for models with a text stream;
    - `SetInputs`;
    - `SamplerParams`;
    - the anchor KV cache, if `spec.pool` is "given";
    - `spec`, static.

    The branch without identity and expression has the negative prompt, all others the image's own. Conditions are
    encoded once, denoising is one loop, and everything is one XLA program for each `spec` and shape.

    Args:
        config: sizes.
        denoiser, autoencoder, identity_encoder: networks.
        mesh: one axis, `IMAGES`, over which the expressions of a call are sharded, [device 0's | device 1's | ...];
            each device samples its own as if it were alone. None: one device, or the devices of the parameters.
    """

    def program(
        parameters: Parameters,
        frozen_components: Mapping[str, Any],
        inputs: SetInputs,
        params: SamplerParams,
        kv_cache: AnchorCache | None = None,
        *,
        spec: SamplerSpec,
    ) -> tuple[UInt8[Array, "G E S S 3"], AnchorCache | None, Bool[Array, "G E"]]:
        model = denoiser.merge(parameters)
        vae = autoencoder.merge(frozen_components["autoencoder"])
        conditions = encode_set(model, vae, identity_encoder, frozen_components, inputs, spec.mode)
        latents, carry = denoise_set(config, model, params, spec, kv_cache, inputs.noise_ids, conditions)
        latents = latents[:, spec.first_decoded :]
        decode = partial(decode_tiled, vae) if config.image_size >= TILED_FROM else vae.decode
        images = decode(vae.unscaled(latents))
        return to_uint8(images), carry, jnp.isfinite(images).all((-3, -2, -1))  # bytes hide NaN as grey

    if mesh is None:
        return jax.jit(program, static_argnames="spec", compiler_options=compiler_options())

    @partial(jax.jit, static_argnames="spec", compiler_options=compiler_options())
    def spread(
        parameters: Parameters,
        frozen_components: Mapping[str, Any],
        inputs: SetInputs,
        params: SamplerParams,
        kv_cache: AnchorCache | None = None,
        *,
        spec: SamplerSpec,
    ) -> tuple[UInt8[Array, "G E S S 3"], AnchorCache | None, Bool[Array, "G E"]]:
        whole, cut = PartitionSpec(), PartitionSpec(None, IMAGES)
        of_inputs = SetInputs(whole, whole, cut, cut, None if inputs.prompt is None else cut)  # type: ignore[arg-type]
        # Every device computes the same KV cache from the same anchors.
        return jax.shard_map(
            partial(program, spec=spec),
            mesh=mesh,
            in_specs=(whole, whole, of_inputs, whole, whole),
            out_specs=(cut, whole, cut),
            check_vma=False,
        )(parameters, frozen_components, inputs, params, kv_cache)

    return spread


def kv_cache_bytes(config: ModelConfig, spec: SamplerSpec, steps: int, item_bytes: int) -> int:
    """Size in bytes of the KV cache of one group's anchors; `item_bytes` is the size of one activation."""
    network = config.mmdit
    rows = evaluations(spec.solver, steps) * network.num_layers * len(GUIDANCE_BRANCHES[spec.mode])
    return 2 * rows * spec.anchors * spec.shared * network.width * item_bytes


def encode_set(
    model: GenAffect,
    vae: AutoencoderKL,
    identity_encoder: Functional[FaceEncoder] | None,
    frozen_components: Mapping[str, Any],
    inputs: SetInputs,
    mode: GuidanceMode,
) -> Conditions:
    """The conditions of all guidance branches, groups of one person side by side (`diffusion.guidance`).

    Args:
        model, vae: networks with parameters.
        identity_encoder: gives the references' embeddings, for models that take them.
        frozen_components: see `make_program`.
        inputs: people and images.
        mode: decides the branches.
    """
    groups, expressions = inputs.noise_ids.shape
    faces = normalise(inputs.reference)
    latents, embedding = vae.to_latents(faces), None
    if identity_encoder is not None:
        embedding = repeat_branches(identity_encoder.merge(frozen_components["identity_encoder"])(faces), mode)
    drop_identity, drop_expression = branch_drops(mode, groups, expressions)
    text = pooled = None
    if inputs.prompt is not None:
        drop_text = drop_identity[:, None] & drop_expression
        text, pooled = frozen_components["prompts"].lookup(repeat_branches(inputs.prompt, mode), drop_text)
    return model.encode_conditions(
        repeat_branches(latents, mode),
        repeat_branches(inputs.reference_mask, mode),
        repeat_branches(inputs.expression, mode),
        drop_identity=drop_identity,
        drop_expression=drop_expression,
        embedding=embedding,
        text=text,
        pooled=pooled,
    )


def denoise_set(
    config: ModelConfig,
    model: GenAffect,
    params: SamplerParams,
    spec: SamplerSpec,
    kv_cache: AnchorCache | None,
    noise_ids: Int[Array, "G E"],
    conditions: Conditions,
) -> tuple[Float[Array, "G E h w c"], AnchorCache | None]:
    """The clean latents of the images, and the anchor KV cache if it is kept.

    Args:
        config: sizes.
        model: the denoiser with parameters.
        params, spec, kv_cache: see `make_program`.
        noise_ids: numbers of the images, which decide their noise.
        conditions: what `encode_set` made.
    """

    def evaluate(
        conditions: Conditions, noisy: Array, sigma: Array, evaluation: Array, carry: SamplerCarry
    ) -> MMDiTOutput:
        identity_scale, expression_scale = params.scales.at(sigma)
        cache = None
        if spec.uses_block_cache:
            cache = BlockCache(evaluation % params.block_cache_interval != 0, carry.block_deltas)
        return model(
            noisy,
            jnp.full(noisy.shape[:2], sigma),
            conditions,
            identity_scale=identity_scale,
            expression_scale=expression_scale,
            sharing=_sharing(config, params, spec, kv_cache, sigma, evaluation),
            block_cache=cache,
        )

    def make_velocity(conditions: Conditions) -> Callable:
        def velocity(noisy: Array, sigma: Array, evaluation: Array, carry: SamplerCarry) -> tuple[Array, SamplerCarry]:
            output = evaluate(conditions, noisy, sigma, evaluation, carry)
            rows = carry.kv_cache
            if rows is not None:
                rows = jax.tree.map(
                    lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, evaluation, 0),
                    rows,
                    output.anchor_kv,
                )
            return output.prediction, SamplerCarry(rows, output.block_deltas)

        return velocity

    branches = len(GUIDANCE_BRANCHES[spec.mode])
    limited = spec.guidance_limited and branches > 1
    side, channels = config.mmdit.sample_size, config.mmdit.in_channels
    noise = initial_noise(params.seed, noise_ids, (side, side, channels))
    carry = SamplerCarry()
    if spec.pool == "kept" or spec.uses_block_cache:
        carry = _empty_carry(config, model, params, spec, kv_cache, noise, conditions)
    latents, carry = sample(
        guided(
            make_velocity(conditions),
            spec.mode,
            params.guidance_identity,
            params.guidance_expression,
            interval=(params.guidance_interval[0], params.guidance_interval[1]) if limited else None,
            # The last branch of every group is the one with all conditions.
            velocity_full=make_velocity(conditions.of_groups(branches - 1, branches)) if limited else None,
        ),
        noise,
        params.sigmas,
        params.steps,
        spec.solver,
        carry,
    )
    return latents, carry.kv_cache


def _empty_carry(
    config: ModelConfig,
    model: GenAffect,
    params: SamplerParams,
    spec: SamplerSpec,
    kv_cache: AnchorCache | None,
    noise: Float[Array, "G E h w c"],
    conditions: Conditions,
) -> SamplerCarry:
    """Zeros in the shapes that the evaluations will write."""

    def evaluate(noisy: Array, sharing: Sharing | None) -> MMDiTOutput:
        cache = BlockCache() if spec.uses_block_cache else None
        return model(noisy, jnp.zeros(noisy.shape[:2]), conditions, sharing=sharing, block_cache=cache)

    output = jax.eval_shape(
        evaluate,
        repeat_branches(noise, spec.mode),
        _sharing(config, params, spec, kv_cache, jnp.ones(()), jnp.zeros((), int)),
    )
    rows = evaluations(spec.solver, params.sigmas.shape[0] - 1)
    pools = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), output.anchor_kv)
    return SamplerCarry(pools, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), output.block_deltas))


def _sharing(
    config: ModelConfig,
    params: SamplerParams,
    spec: SamplerSpec,
    kv_cache: AnchorCache | None,
    sigma: Array,
    evaluation: Array,
) -> Sharing | None:
    """The tokens that the images share in one evaluation; every evaluation has other ones."""
    if not spec.shares:
        return None
    active = None
    if spec.sharing_limited:
        low, high = params.sharing_interval
        active = params.sharing_layers & (sigma > low) & (sigma <= high)
    pool = None
    if spec.pool == "given":
        pool = jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, evaluation, 0, keepdims=False), kv_cache)
    tokens = tokens_at(config, params, spec, evaluation)
    return Sharing(tokens, active, pool, spec.anchors, keep_pool=spec.pool == "kept")


def tokens_at(config: ModelConfig, params: SamplerParams, spec: SamplerSpec, evaluation: Int[Array, ""]) -> Tokens:
    """The image tokens that the anchors share in one evaluation, drawn for every layer from the seed."""
    network = config.mmdit
    key = jax.random.fold_in(seed_key(params.seed), TOKENS_PURPOSE)
    return random_tokens(
        jax.random.fold_in(key, evaluation), network.num_layers, network.image_tokens, spec.shared, params.candidates
    )
