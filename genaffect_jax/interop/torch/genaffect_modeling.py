"""What Gen-AFFECT (arXiv 2508.09461) adds to an SD3 transformer: condition projectors and attention between images.

`GenAffectAdapter` turns reference images and expression vectors into keys and values of every block. `SetAttnProcessor`
is the attention of a block: joint (SD3), decoupled for identity and expression, and consistent among a set's images.

Axes: G groups (people, or guidance branches) of E images; L image and T text tokens; N heads of width H.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from torch import nn


@dataclass
class Sharing:
    """Consistent attention of one block in one evaluation: which image tokens the first `anchors` images share."""

    shared: torch.Tensor  # [S]
    own: torch.Tensor  # [L - S], all others
    anchors: int


class SetAttnProcessor:
    """The attention of one block. What it reads beside its two streams is set by `GenAffectAdapter.condition`."""

    def __init__(self):
        self.identity = self.expression = self.identity_scale = self.expression_scale = self.sharing = None

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None):
        """Z = Attn(Q, K, V) + s_id Attn(Q, K_id, V_id) + s_ex Attn(Q, K_ex, V_ex), with a softmax for each term."""

        def project(to_q, to_k, to_v, norm_q, norm_k, x):
            q, k, v = (split_heads(layer(x), attn.heads) for layer in (to_q, to_k, to_v))
            return (q, k, v) if norm_q is None else (norm_q(q), norm_k(k), v)

        image = project(attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k, hidden_states)
        text = project(
            attn.add_q_proj,
            attn.add_k_proj,
            attn.add_v_proj,
            attn.norm_added_q,
            attn.norm_added_k,
            encoder_hidden_states,
        )
        groups, length = len(self.identity[0]), hidden_states.shape[1]
        if self.sharing is None:
            mixed = F.scaled_dot_product_attention(*(torch.cat(pair, dim=2) for pair in zip(image, text, strict=True)))
        else:
            mixed = consistent_attention(image, text, self.sharing, groups)
        image_mixed, text_mixed = mixed[:, :, :length], mixed[:, :, length:]
        # The images of a group share its identity tokens: their queries become one sequence, nothing is copied.
        identity = F.scaled_dot_product_attention(fold(image[0], groups), *self.identity)
        image_mixed = image_mixed + self.identity_scale * unfold(identity, len(image_mixed))
        image_mixed = image_mixed + self.expression_scale * F.scaled_dot_product_attention(image[0], *self.expression)
        out = attn.to_out[0](join_heads(image_mixed))
        return out, join_heads(text_mixed) if attn.context_pre_only else attn.to_add_out(join_heads(text_mixed))


def consistent_attention(image, text, sharing, groups):
    """Joint attention in which all images of a group also attend to the shared tokens of its anchors (the pool).

    An anchor, whose shared tokens are in the pool, sees `text + image[not shared]` and the pool; any other image sees
    `text + image` and the pool. Two attentions, merged by their log-sum-exp; the pool is neither masked nor repeated.
    """
    (q, k, v), (text_q, text_k, text_v) = image, text
    queries, expressions = torch.cat([q, text_q], dim=2), len(q) // groups
    is_anchor = torch.arange(len(q), device=q.device).reshape(groups, expressions)[:, : sharing.anchors].flatten()
    others = torch.arange(len(q), device=q.device).reshape(groups, expressions)[:, sharing.anchors :].flatten()
    pool = [fold(x[is_anchor][:, :, sharing.shared], groups) for x in (k, v)]
    parts = [
        (is_anchor, k[is_anchor][:, :, sharing.own], v[is_anchor][:, :, sharing.own]),
        (others, k[others], v[others]),
    ]
    out, lse = torch.empty_like(queries), queries.new_empty(queries.shape[:3], dtype=torch.float32)
    for rows, key, value in parts:
        if len(rows):
            key, value = torch.cat([key, text_k[rows]], dim=2), torch.cat([value, text_v[rows]], dim=2)
            part, sums = attend_with_lse(queries[rows], key, value)
            out, lse = out.index_copy(0, rows, part), lse.index_copy(0, rows, sums)
    pooled, sums = (unfold(x, len(q)) for x in attend_with_lse(fold(queries, groups), *pool))
    weight = torch.sigmoid(sums - lse)[..., None]  # exp(lse_pool) / (exp(lse_own) + exp(lse_pool))
    return (out.float() + weight * (pooled.float() - out.float())).to(out.dtype)


def attend_with_lse(query, key, value):
    """Attention and the float32 log-sum-exp of its scores, by the fused kernels; in plain operations for gradients."""
    length = query.shape[2]
    if torch.is_grad_enabled() or query.device.type not in ("cpu", "cuda"):
        scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
        return (scores.softmax(-1).to(value.dtype) @ value), scores.logsumexp(-1)
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[:2]
    if query.dtype == torch.float32:
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    return out, lse[..., :length]  # the kernels pad the sums


def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x):
    return x.transpose(-3, -2).flatten(-2)


def fold(x, groups):
    """[G*E, N, S, ...] to [G, N, E*S, ...]: the tokens of a group's images as one sequence."""
    return x.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)


def unfold(x, images):
    """The inverse of `fold`."""
    return x.unflatten(2, (images // len(x), -1)).transpose(1, 2).flatten(0, 1)


class ProjectorLayer(nn.Module):
    """A pre-norm transformer layer; with a context it is a perceiver's (arXiv 2103.03206), which sees both."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, x, context=None):
        normed = layer_norm(x)
        seen = normed if context is None else torch.cat([layer_norm(context), normed], dim=1)
        q, k, v = (split_heads(y, self.heads) for y in (self.to_q(normed), self.to_k(seen), self.to_v(seen)))
        mixed = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        x = x + self.to_out(join_heads(mixed))
        return x + self.ff(layer_norm(x))


def layer_norm(x):
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)


class IdentityProjector(nn.Module):
    """Identity tokens from the latents (and face embeddings) of any number of references of one person."""

    def __init__(self, width, heads, patch_size, channels, layers, tokens, face_width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)
        self.layers = nn.ModuleList(ProjectorLayer(width, heads) for _ in range(layers))
        self.face = nn.Linear(face_width, width) if face_width else None
        self.queries = nn.Parameter(torch.randn(tokens, width)) if tokens else None
        self.null = nn.Parameter(torch.randn(width))

    def forward(self, reference, positions, face=None):
        """[G, R, c, h, w] latents, [1, L, D] positions and [G, R, F] unit vectors to [G, K, D] tokens."""
        groups, dtype = len(reference), self.null.dtype
        tokens = self.proj(reference.flatten(0, 1).to(dtype)).flatten(2).mT
        tokens = (
            (tokens + (positions - positions.mean(1, keepdim=True)).to(dtype)).unflatten(0, (groups, -1)).flatten(1, 2)
        )
        if self.face is not None:
            tokens = torch.cat([tokens, self.face((face.shape[-1] ** 0.5 * face).to(dtype))], dim=1)
        x, context = (tokens, None) if self.queries is None else (self.queries.expand(groups, -1, -1), tokens)
        for layer in self.layers:
            x = layer(x, context)
        return layer_norm(x)


class ExpressionProjector(nn.Module):
    """Expression tokens from the expression vector: learned tokens plus an MLP of the vector."""

    def __init__(self, width, vector_width, tokens):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(vector_width, width), nn.Linear(width, tokens * width)
        self.base, self.null = nn.Parameter(torch.randn(tokens, width)), nn.Parameter(torch.randn(tokens, width))

    def forward(self, vector):
        hidden = F.silu(self.linear_1(vector.to(self.base.dtype)))
        return self.linear_2(hidden).unflatten(-1, self.base.shape) + self.base


class ConditionBranch(nn.Module):
    """Key and value projections of one branch of one block."""

    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.to_k, self.to_v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm_k = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, tokens):
        return self.norm_k(split_heads(self.to_k(tokens), self.heads)), split_heads(self.to_v(tokens), self.heads)


class GenAffectAdapter(ModelMixin, ConfigMixin):
    """Projectors and branches for `SD3Transformer2DModel`: `attach` once, `condition` per evaluation.

    Example of training: `adapter.condition(transformer, adapter(reference, positions, vectors))`, then call the
    transformer; gradients reach both.
    """

    @register_to_config
    def __init__(
        self, width, heads, num_layers, patch_size, in_channels, qk_norm, expression_width, expression_tokens,
        identity_layers, identity_tokens=0, face_width=0, prediction="velocity", register_tokens=0, image_size=128,
        run=None,
    ):  # fmt: skip
        super().__init__()
        self.identity_projector = IdentityProjector(
            width, heads, patch_size, in_channels, identity_layers, identity_tokens, face_width
        )
        self.expression_projector = ExpressionProjector(width, expression_width, expression_tokens)
        branches = (ConditionBranch(width, heads, qk_norm) for _ in range(2 * num_layers))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"identity": next(branches), "expression": next(branches)}) for _ in range(num_layers)
        )

    def forward(self, reference, positions, vectors, face=None, drop_identity=None, drop_expression=None):
        """Keys and values of all blocks, constant while a set is denoised.

        reference [G, R, c, h, w], positions [1, L, D], vectors [G, E, W], face [G, R, F], drop_identity [G] and
        drop_expression [G, E]: where the learned null tokens take the place of a condition (guidance).
        """
        identity = self.identity_projector(reference, positions, face)
        if drop_identity is not None:
            identity = torch.where(drop_identity[:, None, None], self.identity_projector.null, identity)
        expression = self.expression_projector(vectors)
        if drop_expression is not None:
            expression = torch.where(drop_expression[..., None, None], self.expression_projector.null, expression)
        expression = expression.flatten(0, 1)
        return [(block["identity"](identity), block["expression"](expression)) for block in self.blocks]

    def attach(self, transformer):
        """Gives every joint attention of the transformer its processor; equal blocks may then be compiled once."""
        for block in transformer.transformer_blocks:
            block.attn.set_processor(SetAttnProcessor())
        transformer._repeated_blocks = ["JointTransformerBlock"]

    def condition(self, transformer, conditions, identity_scale=1.0, expression_scale=1.0):
        """Sets what the next evaluations see. A scale is one number, or one per block."""
        for i, block in enumerate(transformer.transformer_blocks):
            processor = block.attn.processor
            processor.identity, processor.expression = conditions[i]
            scales = [s[i] if isinstance(s, (list, tuple)) else s for s in (identity_scale, expression_scale)]
            # Tensors, so that a compiled block takes them as inputs: a new scale does not compile again.
            processor.identity_scale, processor.expression_scale = processor.identity[0].new_tensor(scales)

    def share(self, transformer, sharing):
        """Consistent attention in the next evaluation: one `Sharing` per block, or None."""
        for i, block in enumerate(transformer.transformer_blocks):
            block.attn.processor.sharing = None if sharing is None else sharing[i]
