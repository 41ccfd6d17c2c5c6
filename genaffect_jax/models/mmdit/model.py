"""The multimodal diffusion transformer of Stable Diffusion 3 and 3.5, with decoupled condition branches.

Esser et al. 2024, arXiv 2403.03206; the dual attention blocks are those of SD3.5-medium. Without condition branches the
network computes the same function as diffusers' `SD3Transformer2DModel`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import ConditionAttention, MMDiTConfig
from genaffect_jax.kernels.gradient_sums import spread
from genaffect_jax.kernels.norms import modulated_norm
from genaffect_jax.models.layer_stack import LayerStack, join_layers
from genaffect_jax.models.layers import Linear
from genaffect_jax.models.mmdit.attention import BranchInputs, KeyValue
from genaffect_jax.models.mmdit.block import MMDiTBlock
from genaffect_jax.models.mmdit.block_cache import BlockCache, Streams, run_with_block_cache
from genaffect_jax.models.mmdit.consistent_attention import Sharing
from genaffect_jax.models.mmdit.embeddings import (
    TIMESTEP_FEATURES,
    Embedder,
    Modulation,
    patchify,
    sincos_table,
    timestep_features,
    unpatchify,
)

# Timesteps of the SD3 family are sigma * 1000.
TIMESTEP_SCALE = 1000.0

Scale = Float[Array, "*layers"] | float


class PositionTable(nnx.Variable):
    """The position table. It is read from weight files and never trained, hence no `nnx.Param`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """Everything that stays constant while a set is denoised, projected once; a pytree without parameters.

    None stands for an input that the model does not have.
    """

    text: Float[Array, "G E T D"] | None = None
    """Text tokens in the model's width, and expression tokens that join them."""
    pooled: Float[Array, "G E D"] | None = None
    """Projected pooled text embedding, which is added to the timestep embedding."""
    identity: KeyValue | None = None
    """Keys and values of the identity tokens, [layers, G, K, N, H], shared by the images of a group."""
    identity_mask: Bool[Array, "G K"] | None = None
    """False where an identity token is padding; None: no token is."""
    expression: KeyValue | None = None
    """Keys and values of the expression tokens, [layers, G, E, K, N, H]; None where they are among the text tokens."""

    def of_groups(self, first: int, stride: int) -> Conditions:
        """The conditions of the groups `first`, `first + stride` and so on."""
        chosen = slice(first, None, stride)
        text, pooled, mask = jax.tree.map(lambda x: x[chosen], (self.text, self.pooled, self.identity_mask))
        identity, expression = jax.tree.map(lambda x: x[:, chosen], (self.identity, self.expression))
        return Conditions(text, pooled, identity, mask, expression)


class MMDiTOutput(NamedTuple):
    """The result of one evaluation, and what other images and later evaluations may use of it."""

    prediction: Float[Array, "G E h w c"]
    """What the network predicts of every image, float32: the velocity, or the clean latents
    (`ModelConfig.prediction`)."""
    anchor_kv: KeyValue | None = None
    """The pool of every layer, keys and values [layers, G, K, N, H]; None unless the sharing keeps it."""
    block_deltas: Streams | None = None
    """What the middle blocks added to the image and the text stream; None without a block cache."""


class MMDiT(nnx.Module):
    """The denoising transformer: from noisy latents, timestep and conditions to a prediction.

    Args:
        config: sizes; `register_tokens > 0` replaces the text stream's input by learned tokens.
        branches: the identity and expression branches of every block (`ConditioningConfig.attention`); None for the
            base model, which has none.
        rngs: source of the initial values.
        dtype: compute type (float32 or bfloat16); parameters are float32.
        max_free: whether attention may use the kernel without a running maximum (`kernels.hopper_attention`). It has no
            gradient, and all scores must lie within `score_bound.LARGEST_SCORE`.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        branches: ConditionAttention | None,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        max_free: bool = False,
    ) -> None:
        self.config, self.branches, self.dtype = config, branches, dtype
        width, patch_width = config.width, config.patch_size**2
        self.patch_embed = Linear(patch_width * config.in_channels, width, axes=(None, "embed"), rngs=rngs, dtype=dtype)
        self.position_table = PositionTable(
            sincos_table(config.pos_embed_max_size, width, config.tokens_per_side),
            logical_axes=(None, None, "embed"),
        )
        embedder: dict[str, Any] = {"axes": ("conditioning", "embed", None), "rngs": rngs, "dtype": dtype}
        self.timestep_embedder = Embedder(TIMESTEP_FEATURES, width, width, **embedder)
        pooled, registers = config.pooled_projection_dim, config.register_tokens
        self.pooled_embedder = Embedder(pooled, width, width, **embedder) if pooled else None
        tokens = normal(1.0)(rngs.params(), (registers, width), jnp.float32)
        self.register_tokens = nnx.Param(tokens, logical_axes=(None, "embed")) if registers else None
        text_axes = ("conditioning", "embed")
        self.text_embed = (
            None if registers else Linear(config.joint_attention_dim, width, axes=text_axes, rngs=rngs, dtype=dtype)
        )
        # Runs of equal blocks: at most three in the SD3 family (dual, plain, last).
        kinds = [(i in config.dual_attention_layers, i == config.num_layers - 1) for i in range(config.num_layers)]
        self.segments = nnx.List(
            LayerStack(
                partial(
                    MMDiTBlock,
                    config,
                    dual=dual,
                    last=last,
                    branches=branches,
                    max_free=max_free,
                    dtype=dtype,
                ),
                len(list(run)),
                scan=config.scan_layers,
                remat=config.remat,
                rngs=rngs,
            )
            for (dual, last), run in groupby(kinds)
        )
        self.out_modulation = Modulation(width, 2, rngs=rngs, dtype=dtype)
        self.out = Linear(
            width, patch_width * config.out_channels, axes=("embed", None), kernel_init=zeros, rngs=rngs, dtype=dtype
        )

    def positions(self, rows: int, columns: int) -> Float[Array, "L D"]:
        """Position vectors of a grid of tokens, row by row: the centre of the full table.

        Raises:
            ValueError: the grid is larger than the table.
        """
        side = self.config.pos_embed_max_size
        if rows > side or columns > side:
            raise ValueError(f"latents of {rows}x{columns} tokens: the position table holds {side}x{side}")
        top, left = (side - rows) // 2, (side - columns) // 2
        return self.position_table[...][top : top + rows, left : left + columns].reshape(rows * columns, -1)

    def project_conditions(
        self,
        *,
        text: Float[Array, "G E T C"] | None = None,
        pooled: Float[Array, "G E P"] | None = None,
        identity_tokens: Float[Array, "G K D"] | None = None,
        identity_mask: Bool[Array, "G K"] | None = None,
        expression_tokens: Float[Array, "G E J D"] | None = None,
    ) -> Conditions:
        """Projects everything that stays constant while a set is denoised, for all layers at once.

        Args:
            text: text tokens, for models without register tokens.
            pooled: pooled text embedding, for models with `pooled_projection_dim`.
            identity_tokens: tokens in the model's width, shared by the images of a group, for models with branches.
            identity_mask: False where an identity token is padding; None: no token is.
            expression_tokens: tokens in the model's width of each image, for models with branches.

        Raises:
            ValueError: an input that this model needs is missing, or one is given that it does not take.
        """
        expected = {
            "text": (text, self.text_embed is not None),
            "pooled": (pooled, self.pooled_embedder is not None),
            "identity_tokens": (identity_tokens, self.branches is not None),
            "expression_tokens": (expression_tokens, self.branches is not None),
        }
        for name, (value, needed) in expected.items():
            if (value is not None) != needed:
                raise ValueError(f"conditions: {name} is {'missing' if needed else 'given, but the model takes none'}")
        identity = expression = None
        if identity_tokens is not None:
            layers = [s.map(lambda b: b.project_conditions(identity_tokens, expression_tokens)) for s in self.segments]
            identity, expression = join_layers(*layers)
        text_tokens = None if text is None or self.text_embed is None else self.text_embed(text)
        if self.branches == "text" and expression_tokens is not None:
            text_tokens = expression_tokens if text_tokens is None else _append(text_tokens, expression_tokens)
        return Conditions(
            text=text_tokens,
            pooled=None if pooled is None or self.pooled_embedder is None else self.pooled_embedder(pooled),
            identity=identity,
            identity_mask=identity_mask,
            expression=expression,
        )

    def __call__(
        self,
        latents: Float[Array, "G E h w c"],
        timestep: Float[Array, "G E"],
        conditions: Conditions,
        *,
        identity_scale: Scale = 1.0,
        expression_scale: Scale = 1.0,
        sharing: Sharing | None = None,
        block_cache: BlockCache | None = None,
    ) -> MMDiTOutput:
        """One evaluation of the network.

        Args:
            latents: noisy latents of G groups of E images. Rows and columns beyond a multiple of the patch size are
                dropped, and the prediction lacks them too.
            timestep: sigma in [0, 1]; the network multiplies it by 1000.
            conditions: the result of `project_conditions`.
            identity_scale, expression_scale: weight of each condition branch, one number or one per layer; traced.
            sharing: consistent attention among the images of each group; None: no image sees another.
            block_cache: what the middle blocks added in an earlier evaluation; None: all blocks are computed.

        Raises:
            ValueError: the latents are larger than the position table, or there are too few blocks for `block_cache`.
        """
        layers, patch = self.config.num_layers, self.config.patch_size
        rows, columns = latents.shape[2] // patch, latents.shape[3] // patch
        streams = self._embed_tokens(latents, conditions, rows, columns)
        activated = self._embed_timestep(timestep, conditions)
        branches = self._branch_inputs(conditions, identity_scale, expression_scale)
        run_blocks = partial(self._run_blocks, activated, branches, conditions.identity_mask, sharing)
        deltas = None
        if block_cache is None:
            (image, _), anchor_kv = run_blocks(streams, 0, layers)
        else:
            (image, _), anchor_kv, deltas = run_with_block_cache(run_blocks, streams, layers, block_cache)
        return MMDiTOutput(unpatchify(self._project_out(image, activated), patch, rows, columns), anchor_kv, deltas)

    def block_outputs(
        self, latents: Float[Array, "G E h w c"], timestep: Float[Array, "G E"], conditions: Conditions
    ) -> list[Streams]:
        """The image and the text stream after every block, for comparisons with another implementation.

        Scales are 1 and no image sees another; arguments and errors as in `__call__`.
        """
        patch = self.config.patch_size
        streams = self._embed_tokens(latents, conditions, latents.shape[2] // patch, latents.shape[3] // patch)
        activated = self._embed_timestep(timestep, conditions)
        branches = self._branch_inputs(conditions, 1.0, 1.0)
        outputs = []
        for layer in range(self.config.num_layers):
            streams, _ = self._run_blocks(
                activated, branches, conditions.identity_mask, None, streams, layer, layer + 1
            )
            outputs.append(streams)
        return outputs

    def _embed_tokens(
        self, latents: Float[Array, "G E h w c"], conditions: Conditions, rows: int, columns: int
    ) -> Streams:
        """The two streams before the first block: patches with their positions, and text or register tokens."""
        image = self.patch_embed(patchify(latents, self.config.patch_size))
        image = image + self.positions(rows, columns).astype(self.dtype)
        if self.register_tokens is None:
            assert conditions.text is not None
            return image, conditions.text
        text = spread(self.register_tokens[...], (*latents.shape[:2], *self.register_tokens.shape), self.dtype)
        return image, text if conditions.text is None else _append(text, conditions.text)

    def _embed_timestep(self, timestep: Float[Array, "G E"], conditions: Conditions) -> Float[Array, "G E D"]:
        """The embedding of the timestep, with the pooled text if the model takes it, after SiLU; float32."""
        embedding = self.timestep_embedder(timestep_features(timestep * TIMESTEP_SCALE))
        if conditions.pooled is not None:
            embedding = embedding + conditions.pooled
        return nnx.silu(embedding.astype(jnp.float32))

    def _branch_inputs(
        self, conditions: Conditions, identity_scale: Scale, expression_scale: Scale
    ) -> BranchInputs | None:
        """What the condition branches of all layers see; None for a model without branches."""
        if conditions.identity is None:
            return None
        per_layer = (self.config.num_layers,)
        scales = [jnp.broadcast_to(jnp.asarray(s, jnp.float32), per_layer) for s in (identity_scale, expression_scale)]
        return BranchInputs(conditions.identity, conditions.expression, *scales)

    def _run_blocks(
        self,
        activated: Float[Array, "G E D"],
        branches: BranchInputs | None,
        identity_mask: Bool[Array, "G K"] | None,
        sharing: Sharing | None,
        streams: Streams,
        first: int,
        last: int,
    ) -> tuple[Streams, KeyValue | None]:
        """Runs the blocks `first` to `last - 1`: the streams after them, and the pool of each block if it is kept."""

        def step(
            block: MMDiTBlock, streams: Streams, inputs: tuple[BranchInputs | None, Sharing | None]
        ) -> tuple[Streams, KeyValue | None]:
            return block(*streams, activated, inputs[0], identity_mask, inputs[1])

        start, pools = 0, []
        for segment in self.segments:
            stop = start + segment.length
            if max(first, start) < min(last, stop):
                per_layer = jax.tree.map(operator.itemgetter(slice(start, stop)), (branches, sharing))
                streams, pool = segment.run(
                    step, streams, per_layer, max(first, start) - start, min(last, stop) - start
                )
                pools.append(pool)
            start = stop
        return streams, join_layers(*pools)

    def _project_out(
        self, image: Float[Array, "G E L D"], activated: Float[Array, "G E D"]
    ) -> Float[Array, "G E L ppc"]:
        """The last modulated norm and the projection to patches, float32."""
        scale, shift = self.out_modulation(activated)
        return self.out(modulated_norm(image, shift, scale)[1]).astype(jnp.float32)


def _append(text: Float[Array, "G E T D"], more: Float[Array, "G E J D"]) -> Float[Array, "G E T+J D"]:
    return jnp.concatenate([text, more.astype(text.dtype)], axis=2)
