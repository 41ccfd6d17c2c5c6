"""The multimodal diffusion transformer of Stable Diffusion 3 and 3.5, with decoupled condition branches.

Esser et al. 2024, arXiv 2403.03206; the dual attention blocks are those of SD3.5-medium. Without condition
branches the network is the same function as diffusers' `SD3Transformer2DModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.kernels.norms import modulated_norm
from genaffect_jax.models.layer_stack import LayerStack
from genaffect_jax.models.layers import (
    TIMESTEP_FEATURES,
    Embedder,
    Linear,
    Modulation,
    patchify,
    sincos_table,
    timestep_features,
    unpatchify,
)
from genaffect_jax.models.mmdit.attention import KeyValue
from genaffect_jax.models.mmdit.block import BranchInputs, MMDiTBlock
from genaffect_jax.models.mmdit.block_cache import BlockCache, StreamDeltas, middle_blocks
from genaffect_jax.models.mmdit.consistent_attention import Sharing

# Timesteps of the SD3 family are sigma * 1000.
TIMESTEP_SCALE = 1000.0


class PositionTable(nnx.Variable):
    """The position table: read from weight files, never trained (so no `nnx.Param`)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """All that stays constant while a set is denoised, projected once; a pytree without parameters.

    Keys and values have a leading axis for the layers. None stands for an input that the model does not have.
    """

    text: Float[Array, "G E T D"] | None = None
    """Text tokens in the model's width."""
    pooled: Float[Array, "G E D"] | None = None
    """Projected pooled text embedding; it is added to the timestep embedding."""
    identity: KeyValue | None = None
    """Identity tokens [layers, G, K, N, H], shared by the expressions of a group."""
    identity_mask: Bool[Array, "G K"] | None = None
    """False where an identity token is padding."""
    expression: KeyValue | None = None
    """Expression tokens [layers, G, E, K, N, H]."""

    def of_groups(self, first: int, stride: int) -> Conditions:
        """The conditions of the groups `first`, `first + stride` and so on."""
        chosen = slice(first, None, stride)
        text, pooled, mask = jax.tree.map(lambda x: x[chosen], (self.text, self.pooled, self.identity_mask))
        identity, expression = jax.tree.map(lambda x: x[:, chosen], (self.identity, self.expression))
        return Conditions(text, pooled, identity, mask, expression)


class Left(NamedTuple):
    """What one evaluation leaves for other images and later evaluations."""

    pool: KeyValue | None
    """Keys and values of the pool in every layer, [layers, G, K, N, H], if the sharing keeps them."""
    deltas: StreamDeltas | None
    """What the middle blocks added to the two streams, if there is reuse."""


class MMDiT(nnx.Module):
    """The denoiser: noisy latents, timestep and conditions to velocity.

    Args:
        config: sizes; `register_tokens > 0` replaces the text stream's input by learned tokens.
        branches: whether every block has the identity and expression branches.
        rngs: source of the initial values.
        dtype: compute type (float32 or bfloat16); parameters are float32.
        max_free: attention may use the kernel without a running maximum (`models.hopper_attention`), which takes no
            gradient: all scores are known to lie within `score_bound.LARGEST_SCORE`.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        branches: bool,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        max_free: bool = False,
    ) -> None:
        self.config, self.branches, self.dtype = config, branches, dtype
        width, patch_width = config.width, config.patch_size**2
        self.patch_embed = Linear(patch_width * config.in_channels, width, axes=(None, "embed"), rngs=rngs, dtype=dtype)
        self.position_table = PositionTable(
            sincos_table(config.pos_embed_max_size, width, config.sample_size // config.patch_size),
            logical_axes=(None, None, "embed"),
        )
        embedder: dict[str, Any] = {
            "axes": ("conditioning", "embed", None),
            "rngs": rngs,
            "dtype": dtype,
        }
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
        """Position vectors of a grid of tokens: the centre of the full table, row by row.

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
        """Projects everything that does not change from one denoising step to the next, for all layers at once.

        Raises:
            ValueError: an input that this model needs is missing, or it has no use for one that is given.
        """
        expected = {
            "text": (text, self.text_embed is not None),
            "pooled": (pooled, self.pooled_embedder is not None),
            "identity_tokens": (identity_tokens, self.branches),
            "expression_tokens": (expression_tokens, self.branches),
        }
        for name, (value, needed) in expected.items():
            if (value is not None) != needed:
                raise ValueError(f"conditions: {name} is {'missing' if needed else 'given, but the model takes none'}")
        identity = expression = None
        if identity_tokens is not None:
            layers = [
                s.map(lambda b: (b.identity(identity_tokens), b.expression(expression_tokens))) for s in self.segments
            ]
            identity, expression = jax.tree.map(lambda *x: jnp.concatenate(x), *layers)
        return Conditions(
            text=None if text is None or self.text_embed is None else self.text_embed(text),
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
        identity_scale: Float[Array, "*layers"] | float = 1.0,
        expression_scale: Float[Array, "*layers"] | float = 1.0,
    ) -> Float[Array, "G E h w c"]:
        """Velocity (float32) of noisy latents, every image by itself; see `consistent`."""
        return self.consistent(latents, timestep, conditions, identity_scale, expression_scale, None)[0]

    def consistent(
        self,
        latents: Float[Array, "G E h w c"],
        timestep: Float[Array, "G E"],
        conditions: Conditions,
        identity_scale: Float[Array, "*layers"] | float,
        expression_scale: Float[Array, "*layers"] | float,
        sharing: Sharing | None,
        block_cache: BlockCache | None = None,
    ) -> tuple[Float[Array, "G E h w c"], Left]:
        """Velocity of the noisy latents (float32), and what is left for other images and evaluations.

        Args:
            latents: noisy latents of G groups of E images. Rows and columns beyond a multiple of the patch size
                are dropped, from the result too.
            timestep: sigma in [0, 1]; it is multiplied by 1000 here.
            conditions: what `project_conditions` made.
            identity_scale, expression_scale: weight of each branch, one number or one per layer; traced.
            sharing: consistent attention among the images of each group; None: every image by itself.
            reuse: what the middle blocks added in an earlier evaluation; None: all blocks are computed.

        Raises:
            ValueError: the latents are larger than the position table, or the blocks too few for `block_cache`.
        """
        config, patch = self.config, self.config.patch_size
        rows, columns = latents.shape[2] // patch, latents.shape[3] // patch
        image = self.patch_embed(patchify(latents, patch)) + self.positions(rows, columns).astype(self.dtype)
        text = conditions.text
        if self.register_tokens is not None:
            tokens = self.register_tokens[...].astype(self.dtype)
            text = jnp.broadcast_to(tokens, (*latents.shape[:2], *tokens.shape))
        assert text is not None
        embedding = self.timestep_embedder(timestep_features(timestep * TIMESTEP_SCALE))
        if conditions.pooled is not None:
            embedding = embedding + conditions.pooled
        activated = nnx.silu(embedding.astype(jnp.float32))

        per_layer = None
        if conditions.identity is not None and conditions.expression is not None:
            scales = [
                jnp.broadcast_to(jnp.asarray(s, jnp.float32), (config.num_layers,))
                for s in (identity_scale, expression_scale)
            ]
            per_layer = BranchInputs(conditions.identity, conditions.expression, *scales)

        def blocks(streams: StreamDeltas, first: int, last: int) -> tuple[StreamDeltas, KeyValue | None]:
            start, pools = 0, []
            for segment in self.segments:
                stop = start + segment.length
                if max(first, start) < min(last, stop):
                    streams, pool = segment.run(
                        lambda block, streams, inputs: block(
                            *streams, activated, inputs[0], conditions.identity_mask, inputs[1]
                        ),
                        streams,
                        jax.tree.map(lambda x: x[start:stop], (per_layer, sharing)),  # noqa: B023 (used at once)
                        max(first, start) - start,
                        min(last, stop) - start,
                    )
                    pools.append(pool)
                start = stop
            return streams, jax.tree.map(lambda *x: jnp.concatenate(x), *pools)

        deltas = None
        if block_cache is None:
            (image, text), pool = blocks((image, text), 0, config.num_layers)
        else:
            first, last = middle_blocks(config.num_layers)
            streams, before = blocks((image, text), 0, first)

            def compute() -> tuple[StreamDeltas, StreamDeltas, KeyValue | None]:
                found, pool = blocks(streams, first, last)
                return found, jax.tree.map(jnp.subtract, found, streams), pool

            def again() -> tuple[StreamDeltas, StreamDeltas, KeyValue | None]:
                # No later image looks into these layers either: it reuses in the same evaluation.
                nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute)[2])
                assert block_cache.deltas is not None
                return jax.tree.map(jnp.add, streams, block_cache.deltas), block_cache.deltas, nothing

            streams, deltas, between = (
                compute() if block_cache.now is None else jax.lax.cond(block_cache.now, again, compute)
            )
            (image, text), after = blocks(streams, last, config.num_layers)
            pool = jax.tree.map(lambda *x: jnp.concatenate(x), before, between, after)

        scale, shift = self.out_modulation(activated)
        image = self.out(modulated_norm(image, shift, scale)[1])
        return unpatchify(image.astype(jnp.float32), patch, rows, columns), Left(pool, deltas)
