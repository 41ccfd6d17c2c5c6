"""`sd35_medium`: Stable Diffusion 3.5 medium at 512 px, fine-tuned on a folder of pictures.

Made for released weights in the diffusers layout; it has only been run with random ones. The README says which commands
come before it. Parameters, their average and AdamW's moments are 36 GB in float32, gradients 9 GB more: one GPU of
80 GB, or several with `--mesh.fsdp N`.
"""

import dataclasses

import tyro

from genaffect_jax.config import (
    ConditioningConfig,
    Config,
    DataConfig,
    FlowConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)
from genaffect_jax.models import autoencoder, mmdit


def config() -> Config:
    return Config(
        data=DataConfig(
            source="folder", root=tyro.MISSING, image_size=512, expressions_per_set=3, workers=4, cache_latents=True
        ),
        text=TextConfig(embeddings=tyro.MISSING),
        model=ModelConfig(
            mmdit=dataclasses.replace(mmdit.sd35_medium(), sample_size=64, remat="full"),
            autoencoder=autoencoder.sd3(),
            # 64 tokens for the 1024 patches of a reference. No face embedding: the bundled encoders know avatars only.
            conditioning=ConditioningConfig(identity_layers=2, identity_tokens=64),
            transformer_weights=tyro.MISSING,
            autoencoder_weights=tyro.MISSING,
        ),
        # A low rate for the released weights; the branches, whose values start at zero, learn with the same.
        flow=FlowConfig(shift=3.0),
        train=TrainConfig(
            steps=10_000, batch_size=8, learning_rate=2e-5, warmup_steps=500, weight_decay=0.01, ema_decay=0.999,
            compute_dtype="bfloat16", log_every=20, checkpoint_every=1000, sheet_every=1000,
        ),
    )  # fmt: skip
