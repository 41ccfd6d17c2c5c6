"""`avatar_tiny`: 128-px procedural avatars in 10 to 15 minutes on two CPU cores.

What was tried to get there is in docs/notes/avatar_tiny.md#recipe. Heads stay where words put them (`pose_scale` 0):
turning them at will needs a longer training.
"""

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
        data=DataConfig(
            source="procedural",
            identities=512,
            expressions_per_identity=6,
            expressions_per_set=3,
            pose_scale=0.0,
            cache_latents=True,
        ),
        model=ModelConfig(
            mmdit=MMDiTConfig.avatar_tiny(),
            autoencoder=AutoencoderConfig.avatar_tiny(),
            conditioning=ConditioningConfig(identity_layers=1),
            prediction="x0",
        ),
        # No steps to spare for learning to draw without any condition, which decoupled guidance with
        # guidance_identity 1 never asks for (docs/notes/avatar_tiny.md#conditioning-probe).
        flow=FlowConfig(shift=3.0, change_weight=4.0, drop_all=0.0),
        train=TrainConfig(steps=1800, batch_size=6, learning_rate=2e-3, checkpoint_every=600, sample_every=600),
        # More steps give softer images that are further from both conditions (docs/notes/avatar_tiny.md).
        sampling=SamplingDefaults(steps=4),
    )
