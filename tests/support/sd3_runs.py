"""Run folders of tiny models of the SD3 family with random weights, as a training leaves them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from genaffect_jax.checkpoints.manager import Checkpoints
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    LoraConfig,
    MMDiTConfig,
    ModelConfig,
    SamplingDefaults,
    TextConfig,
    TrainConfig,
    from_json,
    to_json,
)
from genaffect_jax.io.weight_file import save_weights
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Functional

MMDIT = MMDiTConfig(
    sample_size=8,
    in_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    pooled_projection_dim=8,
    pos_embed_max_size=4,
    dual_attention_layers=(0,),
    register_tokens=0,
)
AUTOENCODER = dataclasses.replace(AutoencoderConfig.sd3(), block_out_channels=(32, 32), latent_channels=4)


def run_config(lora: LoraConfig | None = None, trainable: tuple[str, ...] = ("adapters",), **mmdit) -> DenoiserRun:
    """The configuration of a run; `mmdit` changes fields of the transformer."""
    model = ModelConfig(
        mmdit=dataclasses.replace(MMDIT, **mmdit),
        autoencoder=AUTOENCODER,
        conditioning=ConditioningConfig(expression_tokens=2, identity_layers=1),
        lora=lora or LoraConfig(),
    )
    return DenoiserRun(
        data=DataConfig(image_size=16),
        model=model,
        text=TextConfig(embeddings=Path("prompts.safetensors") if model.mmdit.reads_prompts else None),
        train=TrainConfig(trainable=trainable),
    )


def random_parameters(network: Functional, seed: int = 0) -> dict[str, jax.Array]:
    """No bias is zero, no norm is one, and no kernel makes its layer explode."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            rng.standard_normal(s.shape) / np.sqrt(s.shape[-2] if len(s.shape) > 1 else 16) + name.endswith("scale"),
            s.dtype,
        )
        for name, s in network.shapes.items()
    }


def save_run(
    folder: Path, config: DenoiserRun, step: int = 7, parameters: dict[str, jax.Array] | None = None
) -> dict[str, jax.Array]:
    """Writes a run folder with these or random parameters; returns the denoiser's parameters."""
    denoiser, autoencoder = build_networks(config.model)
    parameters = random_parameters(denoiser) if parameters is None else parameters
    frozen = {name: value for name, value in parameters.items() if name in denoiser.buffers}
    trained = {name: value for name, value in parameters.items() if name not in denoiser.buffers}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_for_sampling(step, trained, frozen, to_json(config))
    save_weights(random_parameters(autoencoder, 1), RunDir(folder).autoencoder, "float32", config.model.autoencoder)
    return parameters


def set_sampling(folder: Path, sampling: SamplingDefaults) -> None:
    """Gives a run other settings of its own, as its training's command does; its checkpoint keeps those before."""
    saved = from_json(DenoiserRun, Checkpoints(folder).config())
    RunDir(folder).config.write_text(to_json(dataclasses.replace(saved, sampling=sampling)))
