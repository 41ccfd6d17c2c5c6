"""The autoencoder of `avatar_s`: 256-px images to 32x32x16 latents, in ten minutes on one H200.

The images are rendered beside the training, which takes some eight processor cores. A step of 64 images takes 60 ms.
"""

from genaffect_jax.config import AutoencoderConfig, AutoencoderRun, DataConfig, TrainConfig


def config() -> AutoencoderRun:
    return AutoencoderRun(
        data=DataConfig(
            source="procedural",
            image_size=256,
            identities=20_000,
            expressions_per_identity=5,
            expressions_per_set=3,
            holdout=0.01,
        ),
        autoencoder=AutoencoderConfig.avatar_s(),
        repeats=4,
        # Far above the usual 1e-6: latents then have noise in them, which the decoder learns to ignore, and are easier
        # for the denoiser (docs/notes/avatar_s.md#the-latents).
        kl_weight=5e-3,
        train=TrainConfig(
            steps=6500,
            batch_size=16,
            learning_rate=1e-3,
            warmup_steps=500,
            gradient_clip=1.0,
            ema_decay=0.999,
            compute_dtype="bfloat16",
            log_every=100,
            checkpoint_every=2000,
            sample_every=2000,
        ),
    )
