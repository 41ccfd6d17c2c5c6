"""Condition projectors: identity tokens from reference images, expression tokens from an expression vector.

Both make tokens of the model's width for `MMDiT.project_conditions`. The transformer depends on nothing else of them,
so that an encoder of another kind can take their place.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling, zeros
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import ConditioningConfig, MMDiTConfig
from genaffect_jax.kernels.gradient_sums import spread
from genaffect_jax.kernels.norms import layer_norm
from genaffect_jax.models.layer_stack import LayerStack
from genaffect_jax.models.layers import MLP, Linear, RMSNorm
from genaffect_jax.models.mmdit.attention import attend
from genaffect_jax.models.mmdit.embeddings import Embedder, patchify
from genaffect_jax.models.mmdit.projections import SelfAttention

# Expression vectors are sparse numbers in [0, 1], not unit normal. With these scales a single active unit moves hidden
# units by order one, and tokens by as much as the learned tokens that they are added to differ.
EXPRESSION_UP_INIT = normal(1.0)
EXPRESSION_DOWN_INIT = variance_scaling(4.0, "fan_avg", "uniform")


class TransformerLayer(nnx.Module):
    """A pre-norm transformer layer over one sequence with padding. It starts as the identity."""

    def __init__(self, width: int, heads: int, head_dim: int, *, rngs: nnx.Rngs, dtype: Any) -> None:
        self.attention = SelfAttention(width, heads, head_dim, qk_norm=True, out_init=zeros, rngs=rngs, dtype=dtype)
        self.mlp = MLP(width, 4 * width, width, down_init=zeros, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "G K D"], mask: Bool[Array, "G K"]) -> Float[Array, "G K D"]:
        x = x + self.attention(layer_norm(x), mask)
        return x + self.mlp(layer_norm(x))


class ResamplerLayer(nnx.Module):
    """A pre-norm perceiver layer: learned queries attend to the context and to themselves, then pass an MLP.

    Jaegle et al. 2021, arXiv 2103.03206. Keys and values come from context and queries together, as in Flamingo
    (Alayrac et al. 2022, arXiv 2204.14198, section 3.1.1). The attention does not start as zero, because queries that
    have not attended to the context hold nothing of it.
    """

    def __init__(self, width: int, heads: int, head_dim: int, *, rngs: nnx.Rngs, dtype: Any) -> None:
        self.heads, self.head_dim, self.dtype = heads, head_dim, dtype

        def project() -> Linear:
            return Linear(width, heads * head_dim, axes=("embed", "heads"), rngs=rngs, dtype=dtype)

        self.query, self.key, self.value = project(), project(), project()
        self.query_norm, self.key_norm = RMSNorm(head_dim, dtype=dtype), RMSNorm(head_dim, dtype=dtype)
        self.out = Linear(heads * head_dim, width, axes=("heads", "embed"), rngs=rngs, dtype=dtype)
        self.mlp = MLP(width, 4 * width, width, down_init=zeros, rngs=rngs, dtype=dtype)

    def __call__(
        self, queries: Float[Array, "G N D"], context: Float[Array, "G K D"], mask: Bool[Array, "G K"]
    ) -> Float[Array, "G N D"]:
        normed = layer_norm(queries)
        seen = jnp.concatenate([layer_norm(context), normed], axis=1)
        mask = jnp.concatenate([mask, jnp.ones(queries.shape[:2], bool)], axis=1)

        def split(x: Float[Array, "G S N*H"]) -> Float[Array, "G S N H"]:
            return x.reshape(*x.shape[:-1], self.heads, self.head_dim)

        query, key = self.query_norm(split(self.query(normed))), self.key_norm(split(self.key(seen)))
        queries = queries + self.out(attend(query, key, split(self.value(seen)), mask))
        return queries + self.mlp(layer_norm(queries))


class IdentityProjector(nnx.Module):
    """Identity tokens from the latents and face embeddings of any number of reference images of one person.

    Every patch of a reference's latents becomes a token, and so does its face embedding, if the model takes one. With
    `identity_tokens` N a resampler turns them into N tokens. Without, transformer layers process them, and they are the
    identity tokens themselves. References have no order: exchanging two of them leaves the tokens of a resampler
    unchanged, and exchanges the tokens of a model without resampler.

    Args:
        config: sizes of the transformer; tokens have its patch size and width.
        conditioning: number of tokens and layers, width of the embedding.
        rngs: source of the initial values.
        dtype: compute type.
    """

    def __init__(
        self, config: MMDiTConfig, conditioning: ConditioningConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        self.patch_size, self.dtype = config.patch_size, dtype
        width, count, features = config.width, conditioning.identity_tokens, conditioning.identity_embedding
        self.embed = Linear(
            config.patch_size**2 * config.in_channels, width, axes=(None, "embed"), rngs=rngs, dtype=dtype
        )
        self.stack = LayerStack(
            partial(
                ResamplerLayer if count else TransformerLayer,
                width,
                config.num_attention_heads,
                config.attention_head_dim,
                dtype=dtype,
            ),
            conditioning.identity_layers,
            scan=config.scan_layers,
            remat=config.remat,
            rngs=rngs,
        )
        self.null = nnx.Param(normal(1.0)(rngs.params(), (width,), jnp.float32), logical_axes=("embed",))
        self.face = Linear(features, width, axes=(None, "embed"), rngs=rngs, dtype=dtype) if features else None
        queries = normal(1.0)(rngs.params(), (count, width), jnp.float32)
        self.queries = nnx.Param(queries, logical_axes=(None, "embed")) if count else None

    def __call__(
        self,
        reference: Float[Array, "G R h w c"],
        reference_mask: Bool[Array, "G R"],
        positions: Float[Array, "L D"],
        drop: Bool[Array, " G"] | None = None,
        *,
        embedding: Float[Array, "G R F"] | None = None,
    ) -> tuple[Float[Array, "G K D"], Bool[Array, "G K"] | None]:
        """The identity tokens of every group.

        Args:
            reference: latents of the references, padded to R.
            reference_mask: False where a reference is padding. A group without references gets the null token.
            positions: position vectors of the references' token grid (`MMDiT.positions`).
            drop: True for groups whose identity is replaced by the learned null token.
            embedding: face embeddings of the references, of length 1, for models that take them.

        Returns:
            The tokens, and their mask: False where a token is padding; None if no token is. K is the resampler's N, or
            without a resampler R * L, and R more with embeddings.

        Raises:
            ValueError: the embedding is missing, or given to a model that takes none.
        """
        if (embedding is not None) != (self.face is not None):
            found = "missing" if embedding is None else "given, but the model takes none"
            raise ValueError(f"conditions: the references' embedding is {found}")
        # Centred over the grid: the mean of all places distinguishes none, and would fill most of a normalised key.
        positions = positions - jnp.mean(positions, axis=0)
        tokens = self.embed(patchify(reference, self.patch_size)) + positions.astype(self.dtype)
        groups, references, length, width = tokens.shape
        tokens = tokens.reshape(groups, references * length, width)
        mask = jnp.repeat(reference_mask, length, axis=1)
        if embedding is not None and self.face is not None:
            # Scaled to numbers of order one, like those of the other tokens.
            faces = self.face(math.sqrt(embedding.shape[-1]) * embedding)
            tokens, mask = jnp.concatenate([tokens, faces], axis=1), jnp.concatenate([mask, reference_mask], axis=1)
        absent = ~jnp.any(reference_mask, axis=1)
        if drop is not None:
            absent = absent | drop
        if self.queries is None:
            # A dropped group attends to all of its tokens, which all equal the null token.
            mask = mask | absent[:, None]
            tokens, _ = self.stack.run(lambda layer, x, _: (layer(x, mask), None), tokens)
        else:
            context = tokens
            queries = spread(self.queries[...], (groups, *self.queries.shape), self.dtype)
            tokens, _ = self.stack.run(lambda layer, x, _: (layer(x, context, mask), None), queries)
        null = spread(self.null[...], tokens.shape, self.dtype)
        return jnp.where(absent[:, None, None], null, layer_norm(tokens).astype(self.dtype)), (
            mask if self.queries is None else None
        )


class ExpressionProjector(nnx.Module):
    """Expression tokens from the expression vector: learned tokens plus an MLP of the vector.

    The sum is not normalised, so that the intensity of an expression survives.

    Args:
        width: width D of the transformer.
        conditioning: width of the vector and number of tokens.
        rngs: source of the initial values.
        dtype: compute type.
    """

    def __init__(
        self, width: int, conditioning: ConditioningConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        shape = (conditioning.expression_tokens, width)
        self.dtype = dtype
        self.mlp = Embedder(
            conditioning.expression_width,
            width,
            conditioning.expression_tokens * width,
            axes=("conditioning", "embed", "heads"),
            up_init=EXPRESSION_UP_INIT,
            down_init=EXPRESSION_DOWN_INIT,
            rngs=rngs,
            dtype=dtype,
        )
        self.base = nnx.Param(normal(1.0)(rngs.params(), shape, jnp.float32), logical_axes=(None, "embed"))
        self.null = nnx.Param(normal(1.0)(rngs.params(), shape, jnp.float32), logical_axes=(None, "embed"))

    def __call__(
        self, expression: Float[Array, "G E W"], drop: Bool[Array, "G E"] | None = None
    ) -> Float[Array, "G E K D"]:
        """Tokens of each image; images where `drop` is True get the learned null tokens."""
        shape = (*expression.shape[:-1], *self.base.shape)
        tokens = self.mlp(expression).reshape(shape) + spread(self.base[...], shape, self.dtype)
        if drop is None:
            return tokens
        return jnp.where(drop[..., None, None], spread(self.null[...], shape, self.dtype), tokens)
