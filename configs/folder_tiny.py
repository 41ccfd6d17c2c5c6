"""`folder_tiny`: the small model on a folder of pictures, `--data.root DIR`."""

import tyro

from genaffect_jax.config import ConditioningConfig, Config, DataConfig, ModelConfig, TrainConfig
from genaffect_jax.models import autoencoder, mmdit


def config() -> Config:
    return Config(
        data=DataConfig(source="folder", root=tyro.MISSING, cache_latents=True),
        model=ModelConfig(
            mmdit=mmdit.avatar_tiny(), autoencoder=autoencoder.avatar_tiny(), conditioning=ConditioningConfig()
        ),
        train=TrainConfig(steps=600, batch_size=12, learning_rate=2e-3, checkpoint_every=200),
    )
