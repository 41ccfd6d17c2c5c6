"""`sd35_large`: Stable Diffusion 3.5 large at 512 px, fine-tuned on a folder of images.

Made for released weights in the diffusers layout and for several devices (`--mesh.fsdp`); nothing of this size has been
run. Which batches fit on which TPUs, by the compiler's account, is in docs/notes/tpu.md. The commands that come
before it, what trains and why are those of `sd35_medium`.
"""

import dataclasses

import tyro

from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    FlowConfig,
    MMDiTConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)


def config() -> DenoiserRun:
    return DenoiserRun(
        data=DataConfig(source="folder", root=tyro.MISSING, image_size=512, expressions_per_set=3, cache_latents=True),
        text=TextConfig(embeddings=tyro.MISSING),
        model=ModelConfig(
            mmdit=dataclasses.replace(MMDiTConfig.sd35_large(), sample_size=64, remat="full"),
            autoencoder=AutoencoderConfig.sd3(),
            conditioning=ConditioningConfig(identity_layers=2, identity_tokens=64),
            transformer_weights=tyro.MISSING,
            autoencoder_weights=tyro.MISSING,
        ),
        flow=FlowConfig(shift=3.0),
        train=TrainConfig(
            steps=10_000,
            trainable=("adapters",),
            batch_size=8,
            learning_rate=1e-4,
            warmup_steps=500,
            weight_decay=0.01,
            ema_decay=0.999,
            compute_dtype="bfloat16",
            log_every=20,
            checkpoint_every=1000,
            sample_every=1000,
        ),
    )
