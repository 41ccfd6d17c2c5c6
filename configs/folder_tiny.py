"""`folder_tiny`: the small model on a folder of images, `--data.root DIR`."""

import tyro

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


def config() -> DenoiserRun:
    return DenoiserRun(
        data=DataConfig(source="folder", root=tyro.MISSING, expressions_per_set=3, cache_latents=True),
        model=ModelConfig(
            mmdit=MMDiTConfig.avatar_tiny(),
            autoencoder=AutoencoderConfig.avatar_tiny(),
            conditioning=ConditioningConfig(identity_layers=1),
            prediction="x0",
        ),
        flow=FlowConfig(shift=3.0, change_weight=4.0),
        train=TrainConfig(steps=1200, batch_size=6, learning_rate=2e-3, checkpoint_every=400, sample_every=400),
        # More steps give softer images that are further from both conditions (docs/notes/avatar_tiny.md).
        sampling=SamplingDefaults(steps=4),
    )
