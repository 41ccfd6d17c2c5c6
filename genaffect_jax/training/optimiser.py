"""AdamW with warm-up, cosine decay and gradient clipping."""

from __future__ import annotations

import jax
import optax

from genaffect_jax.config import TrainConfig
from genaffect_jax.models.lora import FACTORS


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Step number to learning rate: linear warm-up, then constant or a cosine to a hundredth of the peak."""
    warmup = min(config.warmup_steps, config.steps)
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0, config.learning_rate, max(warmup, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), end_value=config.learning_rate * 0.01
    )


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) after clipping by the global norm; only matrices decay."""

    def decays(parameters: dict[str, jax.Array]) -> dict[str, bool]:
        return {name: name.endswith(("kernel", *FACTORS)) for name in parameters}

    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(learning_rate(config), config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decays),
    )
