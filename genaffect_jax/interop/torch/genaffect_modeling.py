"""What Gen-AFFECT (arXiv 2508.09461) adds to an SD3 transformer: condition projectors, and attention among a set.

`GenAffectAdapter` turns reference images and expression vectors into keys and values of every block. `SetAttnProcessor`
is the attention of a block: joint (SD3), decoupled for identity and expression, and consistent among a set's images.
Axes: G groups (people, or guidance branches) of E images; L image and T text tokens; N heads of width H.
"""

from collections import namedtuple
from functools import partial

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import Attention, FeedForward
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

# Consistent attention of a block: image tokens [S] that the first images of a group, its anchors, share; all others.
Sharing = namedtuple("Sharing", ["shared", "own", "anchors"])


class SetAttnProcessor:
    """The attention of one block. What it reads beside its two streams is set by the adapter."""

    identity = expression = identity_scale = expression_scale = sharing = None

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None):
        """Z = Attn(Q, K, V) + s_id Attn(Q, K_id, V_id) + s_ex Attn(Q, K_ex, V_ex): each term has its own softmax."""

        def project(x, to_q, to_k, to_v, norm_q, norm_k):
            q, k, v = (split_heads(layer(x), attn.heads) for layer in (to_q, to_k, to_v))
            return (q, k, v) if norm_q is None else (norm_q(q), norm_k(k), v)

        image = project(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        added = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k
        text, groups, length = project(encoder_hidden_states, *added), self.identity[0].shape[0], hidden_states.shape[1]
        if self.sharing is None:
            mixed = scaled_dot_product_attention(*(torch.cat(pair, dim=2) for pair in zip(image, text, strict=True)))
        else:
            mixed = consistent_attention(image, text, self.sharing, groups)
        # The images of a group share its identity tokens: their queries become one sequence, nothing is copied.
        identity = unfold(scaled_dot_product_attention(fold(image[0], groups), *self.identity), mixed.shape[0])
        expression = scaled_dot_product_attention(image[0], *self.expression)
        out = mixed[:, :, :length] + self.identity_scale * identity + self.expression_scale * expression
        out, text_out = (x.transpose(1, 2).flatten(2) for x in (out, mixed[:, :, length:]))
        return attn.to_out[0](out), text_out if attn.context_pre_only else attn.to_add_out(text_out)


def consistent_attention(image, text, sharing, groups):
    """Joint attention in which all images of a group also attend to the shared tokens of its anchors (the pool).

    An anchor, whose shared tokens are in the pool, sees `text + image[own]` and the pool, any other image sees
    `text + image` and the pool: two attentions, merged by their log-sum-exp. No mask, and no copies of the pool.
    """
    (q, k, v), (text_q, text_k, text_v) = image, text
    query = torch.cat([q, text_q], dim=2)

    def images(x, rows):  # some images of every group
        return x.unflatten(0, (groups, -1))[:, rows].flatten(0, 1)

    anchors, others, found = slice(0, sharing.anchors), slice(sharing.anchors, None), []
    for rows, own in ((anchors, sharing.own), (others, slice(None))):
        if len(images(q, rows)):
            kv = (torch.cat([images(x, rows)[:, :, own], images(y, rows)], 2) for x, y in ((k, text_k), (v, text_v)))
            found.append([x.unflatten(0, (groups, -1)) for x in attend(images(query, rows), *kv)])
    out, lse = (torch.cat(x, dim=1).flatten(0, 1) for x in zip(*found, strict=True))
    pool = (fold(images(x, anchors)[:, :, sharing.shared], groups) for x in (k, v))
    pool_out, pool_lse = (unfold(x, len(q)) for x in attend(fold(query, groups), *pool))
    weight = torch.sigmoid(pool_lse - lse)[..., None]  # exp(pool_lse) / (exp(lse) + exp(pool_lse))
    return (out.float() + weight * (pool_out.float() - out.float())).to(out.dtype)


def attend(query, key, value):
    """Attention and the float32 log-sum-exp of its scores; fused unless gradients are needed."""
    if torch.is_grad_enabled() or query.device.type not in ("cpu", "cuda"):
        scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
        return scores.softmax(-1).to(value.dtype) @ value, scores.logsumexp(-1)
    kernels, given = torch.ops.aten, (query, key, value)
    if query.device.type == "cpu":
        return kernels._scaled_dot_product_flash_attention_for_cpu(*given)[:2]
    half, single = kernels._scaled_dot_product_flash_attention, kernels._scaled_dot_product_efficient_attention
    out, lse, *_ = single(*given, None, True) if query.dtype == torch.float32 else half(*given)
    return out, lse[..., : query.shape[2]]  # the sums may be padded


def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def fold(x, groups):  # [G*E, N, S, ...] to [G, N, E*S, ...]: the tokens of a group's images as one sequence
    return x.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)


def unfold(x, images):  # the inverse of `fold`
    return x.unflatten(2, (images // x.shape[0], -1)).transpose(1, 2).flatten(0, 1)


def normed(x):
    return layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)


class ProjectorLayer(nn.Module):
    """A pre-norm transformer layer; with a context that of a perceiver (arXiv 2103.03206), which sees both."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = Attention(width, heads=heads, dim_head=width // heads, bias=True, qk_norm="rms_norm", eps=1e-6)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(self, x, context=None):
        seen = normed(x) if context is None else torch.cat([normed(context), normed(x)], dim=1)
        x = x + self.attn(normed(x), seen)
        return x + self.ff(normed(x))


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
        groups, dtype = reference.shape[0], self.null.dtype
        tokens = self.proj(reference.flatten(0, 1).to(dtype)).flatten(2).mT
        tokens = tokens + (positions - positions.mean(1, keepdim=True)).to(dtype)
        tokens = tokens.unflatten(0, (groups, -1)).flatten(1, 2)
        if self.face is not None:
            tokens = torch.cat([tokens, self.face((face.shape[-1] ** 0.5 * face).to(dtype))], dim=1)
        x, context = (tokens, None) if self.queries is None else (self.queries.expand(groups, -1, -1), tokens)
        for layer in self.layers:
            x = layer(x, context)
        return normed(x)


class ExpressionProjector(nn.Module):
    """Expression tokens from the expression vector: learned tokens plus an MLP of the vector."""

    def __init__(self, width, vector_width, tokens):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(vector_width, width), nn.Linear(width, tokens * width)
        self.base, self.null = (nn.Parameter(torch.randn(tokens, width)) for _ in range(2))

    def forward(self, vector):
        tokens = self.linear_2(silu(self.linear_1(vector.to(self.base.dtype))))
        return tokens.unflatten(-1, self.base.shape) + self.base


class ConditionBranch(nn.Module):
    """Key and value projections of one branch of one block."""

    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.heads, self.norm_k = heads, nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, tokens):
        return self.norm_k(split_heads(self.to_k(tokens), self.heads)), split_heads(self.to_v(tokens), self.heads)


class GenAffectAdapter(ModelMixin, ConfigMixin):
    """Projectors and branches for an `SD3Transformer2DModel`: `attach` once, `condition` before evaluations.

    To train, call `adapter.condition(transformer, adapter(reference, positions, vectors))` and the transformer.
    """

    @register_to_config
    def __init__(
        self,
        width: int,
        heads: int,
        num_layers: int,
        patch_size: int,
        in_channels: int,
        qk_norm: bool,
        expression_width: int,
        expression_tokens: int,
        identity_layers: int,
        identity_tokens: int = 0,
        face_width: int = 0,
        prediction: str = "velocity",
        register_tokens: int = 0,
        run: dict | None = None,
    ):
        super().__init__()
        sizes = width, heads, patch_size, in_channels, identity_layers, identity_tokens, face_width
        self.identity_projector = IdentityProjector(*sizes)
        self.expression_projector = ExpressionProjector(width, expression_width, expression_tokens)
        new, names = partial(ConditionBranch, width, heads, qk_norm), ("identity", "expression")
        self.blocks = nn.ModuleList(nn.ModuleDict({name: new() for name in names}) for _ in range(num_layers))

    def forward(self, reference, positions, vectors, face=None, drop_identity=None, drop_expression=None):
        """Keys and values of all blocks, constant while a set is denoised.

        reference [G, R, c, h, w], positions [1, L, D], vectors [G, E, W], face [G, R, F]; drop_identity [G] and
        drop_expression [G, E] say where the learned null tokens take the place of a condition; an axis may be 1.
        """
        identity, expression = self.identity_projector(reference, positions, face), self.expression_projector(vectors)
        if drop_identity is not None:
            identity = torch.where(drop_identity[:, None, None], self.identity_projector.null, identity)
        if drop_expression is not None:
            expression = torch.where(drop_expression[..., None, None], self.expression_projector.null, expression)
        expression = expression.flatten(0, 1)
        return [(block["identity"](identity), block["expression"](expression)) for block in self.blocks]

    def attach(self, transformer):
        """Gives every joint attention of the transformer its processor; equal blocks can then be compiled once."""
        for block in transformer.transformer_blocks:
            block.attn.set_processor(SetAttnProcessor())
        transformer._repeated_blocks = ["JointTransformerBlock"]

    def condition(self, transformer, conditions, identity_scale=1.0, expression_scale=1.0):
        """Sets what the next evaluations see, no image any other. A scale is one number, or one per block."""
        for i, block in enumerate(transformer.transformer_blocks):
            processor = block.attn.processor
            processor.sharing, (processor.identity, processor.expression) = None, conditions[i]
            scales = [s[i] if isinstance(s, (list, tuple)) else s for s in (identity_scale, expression_scale)]
            # Tensors, so that a compiled block takes them as inputs: a new scale does not compile again.
            processor.identity_scale, processor.expression_scale = processor.identity[0].new_tensor(scales)

    def share(self, transformer, sharing):
        """Consistent attention in the next evaluation: one `Sharing` per block, or None."""
        for i, block in enumerate(transformer.transformer_blocks):
            block.attn.processor.sharing = None if sharing is None else sharing[i]
