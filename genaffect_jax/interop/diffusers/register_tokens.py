"""A denoiser with register tokens as one that reads prompts, which is what diffusers' SD3 transformer always does.

Register tokens are the first state of the text stream. The same state comes from a text embedding of one-hot rows,
whose kernel holds the tokens. The pooled text embedding, which diffusers needs, is a network of zeros. Both denoisers
compute the same function, to the bit, given one-hot text tokens and a pooled embedding of zeros.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.nn import silu
from jaxtyping import Array

from genaffect_jax.config import MMDiTConfig
from genaffect_jax.models.functional import Parameters

POOLED_WIDTH = 1
_REGISTERS = "register_tokens"
_KERNEL, _BIAS = "text_embed.kernel", "text_embed.bias"
_POOLED = "pooled_embedder."
_TIMESTEP_BIAS = "timestep_embedder.down.bias"


def prompted_config(config: MMDiTConfig) -> MMDiTConfig:
    """The configuration without register tokens; unchanged if there are none."""
    if config.reads_prompts:
        return config
    return dataclasses.replace(
        config,
        register_tokens=0,
        joint_attention_dim=config.register_tokens,
        pooled_projection_dim=POOLED_WIDTH,
    )


def prompted_parameters(config: MMDiTConfig, parameters: Parameters) -> Parameters:
    """The parameters of `prompted_config(config)` that compute the same; unchanged for a model that reads prompts.

    Args:
        config: the configuration with register tokens and without a pooled text embedding.
        parameters: flat parameters of its transformer.
    """
    if config.reads_prompts:
        return parameters
    width, dtype = config.width, parameters[_REGISTERS].dtype
    prompted = {name: value for name, value in parameters.items() if name != _REGISTERS}
    prompted |= {_KERNEL: parameters[_REGISTERS], _BIAS: jnp.zeros(width, dtype)}
    prompted |= {
        f"{_POOLED}up.kernel": jnp.zeros((POOLED_WIDTH, width), dtype),
        f"{_POOLED}up.bias": jnp.zeros(width, dtype),
        f"{_POOLED}down.kernel": jnp.zeros((width, width), dtype),
        f"{_POOLED}down.bias": jnp.zeros(width, dtype),
    }
    return prompted


def register_parameters(config: MMDiTConfig, prompted: Parameters) -> Parameters:
    """The inverse of `prompted_parameters`, also after training in the other form.

    Training may have moved the parameters that began as zeros. The bias of the text embedding then joins every register
    token, and what the pooled embedding gives for its constant input joins the timestep embedding. Zeros change
    nothing, to the bit.
    """
    if config.reads_prompts:
        return prompted
    parameters = {
        name: value for name, value in prompted.items() if not name.startswith(_POOLED) and name not in (_KERNEL, _BIAS)
    }
    parameters[_REGISTERS] = _plus(prompted[_KERNEL], prompted[_BIAS])
    hidden = silu(prompted[f"{_POOLED}up.bias"])
    constant = hidden @ prompted[f"{_POOLED}down.kernel"] + prompted[f"{_POOLED}down.bias"]
    parameters[_TIMESTEP_BIAS] = _plus(parameters[_TIMESTEP_BIAS], constant)
    return parameters


def _plus(x: Array, y: Array) -> Array:
    """`x + y`, and x itself where y is zero (-0.0 + 0.0 would be 0.0)."""
    return jnp.where(y == 0, x, x + y)
