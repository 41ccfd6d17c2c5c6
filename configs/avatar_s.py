"""`avatar_s`: 256-px procedural avatars. With these settings the model inside the package was trained.

22.7 million parameters: six minutes on one H200 for 7,500 steps of 128 sets, after ten minutes for its autoencoder
(docs/notes/avatar_s.md). It needs the weights that `configs/autoencoder_s.py` makes:

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
    SamplingDefaults,
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
        # Nothing learns to draw without any condition, which guidance of the expression never asks for.
        flow=FlowConfig(shift=3.0, change_weight=4.0, drop_all=0.0),
        train=TrainConfig(
            steps=7500,
            batch_size=128,
            learning_rate=8e-4,
            warmup_steps=300,
            ema_decay=0.999,
            compute_dtype="bfloat16",
            log_every=100,
            probe_every=2500,
            checkpoint_every=2500,
            sample_every=2500,
        ),
        # Guidance and more steps change the figures little (docs/notes/avatar_s.md#settings).
        sampling=SamplingDefaults(steps=4, guidance_expression=1.0),
    )
