"""`expression_avatar`: what an avatar's face does, for conditioning. Made for one GPU, some five minutes."""

from genaffect_jax.config import DataConfig, FaceEncoderConfig, TrainConfig
from genaffect_jax.config.encoders import EncoderRun


def config() -> EncoderRun:
    return EncoderRun(
        name="expression_avatar",
        data=DataConfig(
            source="procedural",
            identities=6400,
            expressions_per_identity=9,
            expressions_per_set=3,
            holdout=0.05,
        ),
        encoder=FaceEncoderConfig.expression_avatar(),
        train=TrainConfig(
            steps=4000,
            batch_size=64,
            learning_rate=2e-3,
            warmup_steps=200,
            schedule="constant",
            weight_decay=0.05,
            ema_decay=0.999,
            compute_dtype="bfloat16",
            seed=12,
            log_every=100,
            checkpoint_every=2000,
        ),
    )
