"""The bundled `autoencoder_tiny`: 128-px images to 16x16x16 latents. Made for one GPU, some ten minutes."""

from genaffect_jax.config import AutoencoderConfig, AutoencoderRun, DataConfig, TrainConfig


def config() -> AutoencoderRun:
    return AutoencoderRun(
        data=DataConfig(
            source="procedural",
            identities=20_000,
            expressions_per_identity=5,
            expressions_per_set=3,
            holdout=0.01,
        ),
        autoencoder=AutoencoderConfig.avatar_tiny(),
        repeats=4,
        train=TrainConfig(
            steps=16_000,
            batch_size=32,
            learning_rate=2e-3,
            warmup_steps=200,
            gradient_clip=1.0,
            ema_decay=0.999,
            log_every=100,
            checkpoint_every=2000,
            sample_every=2000,
        ),
    )
