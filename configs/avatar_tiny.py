"""`avatar_tiny`: 128-px procedural avatars in a few minutes on two CPU cores."""

from genaffect_jax.config import ConditioningConfig, Config, DataConfig, ModelConfig, TrainConfig
from genaffect_jax.models import autoencoder, mmdit


def config() -> Config:
    return Config(
        data=DataConfig(source="procedural", identities=512, expressions_per_identity=8, cache_latents=True),
        model=ModelConfig(
            mmdit=mmdit.avatar_tiny(), autoencoder=autoencoder.avatar_tiny(), conditioning=ConditioningConfig()
        ),
        train=TrainConfig(steps=800, batch_size=12, learning_rate=2e-3, checkpoint_every=200),
    )
