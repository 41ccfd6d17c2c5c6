"""Floating point operations of the denoiser by arithmetic, for utilisation as a share of a device's peak.

Products with weights and attention count, with two operations for a multiplication and its addition. The compiler's own
count does not serve: it counts the body of a loop once, and custom kernels not at all.
"""

from __future__ import annotations

from typing import NamedTuple

from genaffect_jax.config import DenoiserRun, MMDiTConfig, ModelConfig
from genaffect_jax.data.groups import REFERENCES_PER_GROUP
from genaffect_jax.kernels.remat import Remat
from genaffect_jax.models.mmdit.embeddings import TIMESTEP_FEATURES


class Flops(NamedTuple):
    """Operations of one forward pass, in FLOP."""

    products: float
    """Products with weights."""
    attention: float
    """Scores, and the sums over values that they weigh."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.products + self.attention

    def plus(self, other: Flops) -> Flops:
        """The sum of both parts."""
        return Flops(self.products + other.products, self.attention + other.attention)


def forward_flops(
    config: MMDiTConfig,
    images: int,
    side: int,
    text: int,
    *,
    identity_tokens: int = 0,
    expression_tokens: int = 0,
    others: float = 0.0,
) -> Flops:
    """The blocks of one forward pass of the transformer.

    Args:
        config: sizes of the transformer.
        images: number of images.
        side: height and width of the latents.
        text: text (or register) tokens per image.
        identity_tokens, expression_tokens: condition tokens that the image queries of each image attend to.
        others: image tokens of other images that each image attends to (consistent attention).
    """
    width, image = config.width, (side // config.patch_size) ** 2
    products = attention = 0.0
    for layer in range(config.num_layers):
        last, dual = layer == config.num_layers - 1, layer in config.dual_attention_layers
        # Query, key, value and output projections (4 D^2) and the feed-forward (8 D^2), 2 operations per weight.
        products += 2 * images * image * 12 * width**2
        products += 2 * images * text * (3 if last else 12) * width**2
        attention += 4 * images * (image + text) * (image + text + others) * width
        attention += 4 * images * image * (identity_tokens + expression_tokens) * width
        if dual:
            products += 2 * images * image * 4 * width**2
            attention += 4 * images * image**2 * width
        products += 2 * images * ((9 if dual else 6) + (2 if last else 6)) * width**2
    return Flops(products, attention)


def condition_flops(model: ModelConfig, sets: int, expressions: int, references: int, text: int) -> Flops:
    """The conditions, which are computed once per set: projectors, branch keys and values, text projection.

    Args:
        model: sizes.
        sets: number of people.
        expressions: images per person.
        references: references per person.
        text: text tokens per prompt, or register tokens, which are not projected.
    """
    network, conditioning = model.mmdit, model.conditioning
    width, images = network.width, sets * expressions
    patch = network.patch_size**2 * network.in_channels
    patches = references * network.image_tokens
    context = patches + (references if conditioning.identity_embedding else 0)
    products = 2.0 * sets * width * (patches * patch + references * conditioning.identity_embedding)
    attention, made, layers = 0.0, conditioning.identity_tokens, conditioning.identity_layers
    if made:  # a resampler: keys and values of context and queries
        products += layers * 2 * sets * (made * 10 + (context + made) * 2) * width**2
        attention += layers * 4 * sets * made * (context + made) * width
    else:
        products += layers * 2 * sets * context * 12 * width**2
        attention += layers * 4 * sets * context**2 * width
    tokens = conditioning.expression_tokens
    products += 2 * images * (conditioning.expression_width * width + width * tokens * width)
    projected = sets * (made or context) + (0 if conditioning.attention == "text" else images * tokens)
    products += network.num_layers * 2 * 2 * projected * width**2
    if network.reads_prompts:
        products += 2 * images * text * network.joint_attention_dim * width
    if network.pooled_projection_dim:
        products += 2 * images * (network.pooled_projection_dim + width) * width
    return Flops(products, attention)


def denoiser_flops(
    model: ModelConfig, sets: int, expressions: int, references: int = 1, text: int | None = None, others: float = 0.0
) -> Flops:
    """One forward pass of the whole denoiser (`models.genaffect.GenAffect`) on latents, conditions included.

    Args:
        model: sizes.
        sets: number of people.
        expressions: images per person.
        references: references per person.
        text: text tokens per prompt; None for a model with register tokens.
        others: image tokens of other images that each image attends to.

    Raises:
        ValueError: `text` is missing, or given for a model with register tokens.
    """
    network, conditioning = model.mmdit, model.conditioning
    if (text is None) == network.reads_prompts:
        raise ValueError(
            f"text={text} for a model with {network.register_tokens} register tokens: "
            "text tokens are counted where there are no registers"
        )
    seen, joined = network.register_tokens if text is None else text, conditioning.attention == "text"
    images, width, image = sets * expressions, network.width, network.image_tokens
    context = references * (image + bool(conditioning.identity_embedding))
    blocks = forward_flops(
        network,
        images,
        network.sample_size,
        seen + (conditioning.expression_tokens if joined else 0),
        identity_tokens=conditioning.identity_tokens or context,
        expression_tokens=0 if joined else conditioning.expression_tokens,
        others=others,
    )
    patch = network.patch_size**2 * (network.in_channels + network.out_channels)
    # Patches in and out, the timestep's embedding, the last modulation.
    ends = 2.0 * images * (image * patch * width + (TIMESTEP_FEATURES + width) * width + 2 * width**2)
    return blocks.plus(Flops(ends, 0.0)).plus(condition_flops(model, sets, expressions, references, seen))


def training_flops(forward: Flops, trained: float = 1.0, remat: Remat = "none") -> float:
    """One training step: the forward pass, its gradient and, with `remat`, the operations that are computed again.

    Model FLOPs utilisation counts a step without recomputation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B):
    `remat="none"`.

    Args:
        forward: operations of one forward pass of the whole batch.
        trained: share of the weights that are trained. The gradient of a product is one more product for its input and
            one for its weights; the latter is left out for frozen weights. The same share of the products is left out
            here, which is exact for 0 and 1 only.
        remat: recomputation policy. `dots` keeps the results of products with weights, `named` also those of attention
            kernels. XLA's attention is no kernel: it is computed again with `named` too, and not counted here.
    """
    again = {"none": 0.0, "named": 0.0, "dots": forward.attention, "full": forward.total}[remat]
    return forward.products * (2 + trained) + forward.attention * 3 + again


def step_flops(config: DenoiserRun, trained: float, remat: bool) -> float:
    """Operations of one training step of the denoiser over all devices, without autoencoder and auxiliary losses.

    Args:
        config: the training run.
        trained: share of the weights that are trained.
        remat: whether to count what the backward pass computes again (`mmdit.remat`).
    """
    expressions, flow = config.data.expressions_per_set, config.flow
    shared = round(flow.consistency * config.model.mmdit.image_tokens) * (1.0 - flow.drop_consistency)
    forward = denoiser_flops(
        *(config.model, config.train.batch_size, expressions, REFERENCES_PER_GROUP, config.text_tokens),
        others=(expressions - 1) * shared,
    )
    return training_flops(forward, trained, config.model.mmdit.remat if remat else "none")
