"""One block of the multimodal diffusion transformer: image and text streams, and the decoupled condition branches."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Bool, Float

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.kernels.fused_bias import gated_residual
from genaffect_jax.kernels.norms import modulated_norm
from genaffect_jax.models.layers import MLP, Linear, Modulation
from genaffect_jax.models.mmdit.attention import KeyValue, attend, attend_shared
from genaffect_jax.models.mmdit.consistent_attention import Sharing, set_attention
from genaffect_jax.models.mmdit.projections import ConditionBranch, QKVProjection, SelfAttention


class BranchInputs(NamedTuple):
    """What one block needs for its condition branches: its own keys and values, and the run-time scales."""

    identity: KeyValue
    expression: KeyValue
    identity_scale: Float[Array, ""]
    expression_scale: Float[Array, ""]


class MMDiTBlock(nnx.Module):
    """One joint block: image and text streams with separate weights meet in one attention.

    Args:
        config: sizes.
        dual: adds a second attention among the image tokens alone (SD3.5-medium).
        last: the text stream ends here: it gives keys and values and is not updated.
        branches: adds the identity and expression branches.
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
        branches: bool,
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
            return MLP(width, 4 * width, width, **common)

        self.dtype, self.max_free = dtype, max_free
        self.image_modulation = Modulation(width, 9 if dual else 6, **common)
        self.text_modulation = Modulation(width, 2 if last else 6, **common)
        self.image_qkv = QKVProjection(width, heads, head_dim, **attention)
        self.text_qkv = QKVProjection(width, heads, head_dim, **attention)
        self.image_out = output()
        self.text_out = None if last else output()
        self.image_attention = SelfAttention(width, heads, head_dim, max_free=max_free, **attention) if dual else None
        self.image_mlp = feed_forward()
        self.text_mlp = None if last else feed_forward()
        self.identity = ConditionBranch(self.image_qkv, width, **common) if branches else None
        self.expression = ConditionBranch(self.image_qkv, width, **common) if branches else None

    def __call__(
        self,
        image: Float[Array, "G E L D"],
        text: Float[Array, "G E T D"],
        activated: Float[Array, "G E D"],
        branches: BranchInputs | None,
        identity_mask: Bool[Array, "G K"] | None,
        sharing: Sharing | None = None,
    ) -> tuple[tuple[Float[Array, "G E L D"], Float[Array, "G E T D"]], KeyValue | None]:
        """The two streams after this block, and the keys and values that the set shared.

        `activated` is the timestep embedding after SiLU, `sharing` that of this layer.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual = self.image_modulation(activated)
        image, normed = modulated_norm(image, shift, scale)
        image_qkv = self.image_qkv(normed)
        if self.image_attention is not None:
            dual_shift, dual_scale, dual_gate = dual
            image, dual_normed = modulated_norm(image, dual_shift, dual_scale)
        if self.text_mlp is None:
            # The closing text modulation is that of AdaLayerNormContinuous: the scale comes first.
            text_scale, text_shift = self.text_modulation(activated)
        else:
            text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = self.text_modulation(
                activated
            )
        text, normed = modulated_norm(text, text_shift, text_scale)
        text_qkv = self.text_qkv(normed)

        (mixed_image, mixed_text), pool = set_attention(image_qkv, text_qkv, sharing, self.max_free)
        if branches is not None:
            seen = attend_shared(image_qkv.query, branches.identity, identity_mask)
            mixed_image += branches.identity_scale.astype(self.dtype) * seen
            seen = attend(image_qkv.query, branches.expression.key, branches.expression.value)
            mixed_image += branches.expression_scale.astype(self.dtype) * seen

        image = _add(image, gate, self.image_out.product(mixed_image), self.image_out)
        if self.image_attention is not None:
            image = _add(image, dual_gate, self.image_attention.product(dual_normed), self.image_attention.out)
        image, normed = modulated_norm(image, mlp_shift, mlp_scale)
        image = _add(image, mlp_gate, self.image_mlp.product(normed), self.image_mlp.down)
        if self.text_mlp is not None and self.text_out is not None:
            text = _add(text, text_gate, self.text_out.product(mixed_text), self.text_out)
            text, normed = modulated_norm(text, text_mlp_shift, text_mlp_scale)
            text = _add(text, text_mlp_gate, self.text_mlp.product(normed), self.text_mlp.down)
        return (image, text), pool


def _add(stream: Array, gate: Array, product: Array, layer: Linear) -> Array:
    """`stream` with a branch that ends in the product of `layer`."""
    assert layer.bias is not None
    return gated_residual(stream, gate, product, layer.bias[...])
