"""The optimizer: gradient clipping, then AdamW or Adafactor, with warm-up and a constant or cosine learning rate."""

from __future__ import annotations

import jax
import optax

from genaffect_jax.config import TrainConfig
from genaffect_jax.models.lora import FACTORS


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, or a cosine down to a hundredth of the peak."""
    warmup = min(config.warmup_steps, config.steps)
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0, config.learning_rate, max(warmup, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), end_value=config.learning_rate * 0.01
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then `config.optimizer`. Weight decay applies to matrices only.

    `adamw` is that of Loshchilov and Hutter 2019, arXiv 1711.05101. `adafactor` is that of Shazeer and Stern 2018,
    arXiv 1804.04235, with updates clipped to a root mean square of 1 per array (section 6), without first moments; its
    learning rate is absolute, not relative to the parameters.
    """

    def decays(parameters: dict[str, jax.Array]) -> dict[str, bool]:
        return {name: name.endswith(("kernel", *FACTORS)) for name in parameters}

    rate, clip = learning_rate(config), optax.clip_by_global_norm(config.gradient_clip)
    if config.optimizer == "adamw":
        return optax.chain(
            clip, optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decays)
        )
    return optax.chain(
        clip,
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.scale_by_learning_rate(rate),
    )
