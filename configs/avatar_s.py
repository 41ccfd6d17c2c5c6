"""`avatar_s`: 256-px procedural avatars, planned for some tens of minutes on one GPU.

Not trained yet: the loss is `avatar_tiny`'s, and rate, batch and steps are a first guess. With 4 heads, 64 sets of 4
images took 4.8 GiB on one H200 (docs/notes/small_models.md). It needs the weights that `configs/autoencoder_s.py`
makes:

    python -m genaffect_jax.train --config configs/autoencoder_s.py --workdir out/autoencoder_s
    python -m genaffect_jax.train --config configs/avatar_s.py --workdir out/avatar_s
"""

import dataclasses
from pathlib import Path

from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    FlowConfig,
    MMDiTConfig,
    ModelConfig,
    TrainConfig,
)
from genaffect_jax.io.weight_file import read_config

AUTOENCODER = Path("out/autoencoder_s/autoencoder.safetensors")


def config() -> DenoiserRun:
    # The file knows the shift and scale of its latents. Without it, training stops and says which file is missing.
    images = read_config(AUTOENCODER, AutoencoderConfig) if AUTOENCODER.is_file() else AutoencoderConfig.avatar_s()
    return DenoiserRun(
        data=DataConfig(
            source="procedural",
            image_size=256,
            identities=10_000,
            expressions_per_identity=8,
            expressions_per_set=4,
            holdout=0.01,
            cache_latents=True,
        ),
        model=ModelConfig(
            # Unrolled: a loop over blocks copies its stacked parameters and activations, a third of a step this small.
            mmdit=dataclasses.replace(MMDiTConfig.avatar_s(), scan_layers=False),
            autoencoder=images,
            # 64 tokens for 256 patches and one face embedding: a quarter of the keys in every block of every step.
            conditioning=ConditioningConfig(identity_layers=2, identity_tokens=64, identity_embedding=256),
            prediction="x0",
            autoencoder_weights=str(AUTOENCODER),
            identity_encoder="package:identity_avatar",
            expression_encoder="package:expression_avatar",
        ),
        flow=FlowConfig(shift=3.0, change_weight=4.0),
        train=TrainConfig(
            steps=40_000,
            batch_size=32,
            learning_rate=4e-4,
            warmup_steps=1000,
            ema_decay=0.9995,
            compute_dtype="bfloat16",
            log_every=100,
            checkpoint_every=5000,
            sample_every=5000,
        ),
    )
