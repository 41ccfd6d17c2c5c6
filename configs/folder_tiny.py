"""`folder_tiny`: the small model on a folder of pictures, `--data.root DIR`."""

import tyro

from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    Config,
    DataConfig,
    FlowConfig,
    MMDiTConfig,
    ModelConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        data=DataConfig(source="folder", root=tyro.MISSING, expressions_per_set=3, cache_latents=True),
        model=ModelConfig(
            mmdit=MMDiTConfig.avatar_tiny(),
            autoencoder=AutoencoderConfig.avatar_tiny(),
            conditioning=ConditioningConfig(identity_layers=1),
            prediction="clean",
        ),
        flow=FlowConfig(shift=3.0, change_weight=4.0),
        train=TrainConfig(steps=1200, batch_size=6, learning_rate=2e-3, checkpoint_every=400, sheet_every=400),
    )
