"""One block of the multimodal diffusion transformer: image and text stream, and the condition branches."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import ConditionAttention, MMDiTConfig
from genaffect_jax.kernels import fused_bias
from genaffect_jax.kernels.norms import modulated_norm
from genaffect_jax.models.layers import MLP, Linear
from genaffect_jax.models.mmdit.attention import (
    QKV,
    BranchInputs,
    KeyValue,
    concatenated_cross_attention,
    decoupled_cross_attention,
    fused_attention,
    runs_fused,
)
from genaffect_jax.models.mmdit.block_cache import Streams
from genaffect_jax.models.mmdit.consistent_attention import Sharing, set_attention
from genaffect_jax.models.mmdit.embeddings import Modulation
from genaffect_jax.models.mmdit.projections import ConditionBranch, QKVProjection, SelfAttention


class MMDiTBlock(nnx.Module):
    """One joint block: image and text streams with weights of their own meet in one attention.

    Esser et al. 2024, arXiv 2403.03206, figure 2.

    Args:
        config: sizes.
        dual: adds a second attention among the image tokens alone (SD3.5-medium).
        last: the text stream ends here: its queries, keys and values still enter the attention, its tokens are not
            updated.
        branches: adds the identity and expression branches; None adds none (`ConditioningConfig.attention`).
        max_free: see `MMDiT`.
        rngs: source of the initial values.
        dtype: compute type.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        dual: bool,
        last: bool,
        branches: ConditionAttention | None,
        max_free: bool,
        rngs: nnx.Rngs,
        dtype: Any,
    ) -> None:
        width, heads, head_dim = config.width, config.num_attention_heads, config.attention_head_dim
        common: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        attention: dict[str, Any] = {"qk_norm": config.qk_norm == "rms_norm", **common}

        def output() -> Linear:
            return Linear(heads * head_dim, width, axes=("heads", "embed"), **common)

        def feed_forward() -> MLP:
            return MLP(width, 4 * width, width, keep_activation=config.remat == "none", **common)

        self.max_free = max_free
        self.image_modulation = Modulation(width, 9 if dual else 6, **common)
        self.text_modulation = Modulation(width, 2 if last else 6, **common)
        self.image_qkv = QKVProjection(width, heads, head_dim, **attention)
        self.text_qkv = QKVProjection(width, heads, head_dim, **attention)
        self.image_out = output()
        self.text_out = None if last else output()
        self.image_attention = SelfAttention(width, heads, head_dim, max_free=max_free, **attention) if dual else None
        self.image_mlp = feed_forward()
        self.text_mlp = None if last else feed_forward()
        self.condition_attention = branches
        self.identity = ConditionBranch(self.image_qkv, width, **common) if branches else None
        self.expression = ConditionBranch(self.image_qkv, width, **common) if branches == "decoupled" else None

    def __call__(
        self,
        image: Float[Array, "G E L D"],
        text: Float[Array, "G E T D"],
        activated: Float[Array, "G E D"],
        branches: BranchInputs | None,
        identity_mask: Bool[Array, "G K"] | None,
        sharing: Sharing | None = None,
    ) -> tuple[Streams, KeyValue | None]:
        """The block's formula.

        Args:
            image, text: tokens of the two streams.
            activated: the timestep embedding (with pooled text) after SiLU, float32.
            branches: what the condition branches of this block see; None: there are none.
            identity_mask: False where an identity token is padding; None: no token is.
            sharing: consistent attention of this layer; None: no image sees another.

        Returns:
            The two streams after this block, and the pool of the anchors' keys and values if it is to be kept.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual = self.image_modulation(activated)
        image, image_normed = modulated_norm(image, shift, scale)
        if self.image_attention is not None:
            dual_shift, dual_scale, dual_gate = dual
            image, dual_normed = modulated_norm(image, dual_shift, dual_scale)
        if self.text_mlp is None:
            # The last text modulation is diffusers' AdaLayerNormContinuous: the scale comes first.
            text_scale, text_shift = self.text_modulation(activated)
        else:
            text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = self.text_modulation(
                activated
            )
        text, normed = modulated_norm(text, text_shift, text_scale)
        mixed, mixed_text, pool = self._attend(image_normed, self.text_qkv(normed), branches, identity_mask, sharing)

        image = gated_residual(image, gate, self.image_out, mixed)
        if self.image_attention is not None:
            image = gated_residual(image, dual_gate, self.image_attention, dual_normed)
        image, normed = modulated_norm(image, mlp_shift, mlp_scale)
        image = gated_residual(image, mlp_gate, self.image_mlp, normed)
        if self.text_mlp is not None and self.text_out is not None:
            text = gated_residual(text, text_gate, self.text_out, mixed_text)
            text, normed = modulated_norm(text, text_mlp_shift, text_mlp_scale)
            text = gated_residual(text, text_mlp_gate, self.text_mlp, normed)
        return (image, text), pool

    def project_conditions(
        self, identity_tokens: Float[Array, "G K D"], expression_tokens: Float[Array, "G E J D"]
    ) -> tuple[KeyValue, KeyValue | None]:
        """Keys and values of identity tokens, and of expression tokens unless they are among the text tokens."""
        assert self.identity is not None, "a block without condition branches"
        if self.condition_attention == "text":
            return self.identity(identity_tokens), None
        return self.identity(identity_tokens), (self.expression or self.identity)(expression_tokens)

    def _attend(
        self,
        image: Float[Array, "G E L D"],
        text: QKV,
        branches: BranchInputs | None,
        identity_mask: Bool[Array, "G K"] | None,
        sharing: Sharing | None,
    ) -> tuple[Float[Array, "G E L i"], Float[Array, "G E T i"], KeyValue | None]:
        """Joint or consistent attention of the normed image tokens and the text, and the branches' attention added."""
        decoupled = self.condition_attention != "concatenated"
        plain = sharing is None and identity_mask is None and self.image_qkv.query_norm is not None
        if branches is not None and decoupled and plain and runs_fused(image, text, branches):
            return *fused_attention(self.image_qkv.before_norm(image), text, branches), None
        image_qkv = self.image_qkv(image)
        (mixed, mixed_text), pool = set_attention(image_qkv, text, sharing, self.max_free)
        if branches is not None:
            cross_attention = decoupled_cross_attention if decoupled else concatenated_cross_attention
            mixed = cross_attention(mixed, image_qkv.query, branches, identity_mask)
        return mixed, mixed_text, pool


def gated_residual(
    stream: Float[Array, "G E S D"],
    gate: Float[Array, "G E 1 D"],
    layer: Linear | MLP | SelfAttention,
    x: Float[Array, "G E S i"],
) -> Float[Array, "G E S D"]:
    """`stream + gate * layer(x)`, with bias, gate and sum in one pass (`kernels.fused_bias.gated_residual`)."""
    product, bias = layer.product_and_bias(x)
    assert bias is not None
    return fused_bias.gated_residual(stream, gate, product, bias)
