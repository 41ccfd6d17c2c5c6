"""`sd35_medium`: Stable Diffusion 3.5 medium at 512 px, fine-tuned on a folder of images.

It is made for released weights in the diffusers layout and has only been run with random ones. docs/guide/weights.md
lists the commands that come before it. Only the modules of Gen-AFFECT (`adapters`) are trainable; the released model is
frozen, in float32. `--model.lora.rank 16` adds low-rank additions to its attention; `--train.trainable everything
--train.learning_rate 2e-5` trains all parameters. docs/notes/memory.md#trainable-parameters lists the memory of each.
"""

import dataclasses

import tyro

from genaffect_jax.config import (
    AutoencoderConfig,
    ConditioningConfig,
    DataConfig,
    DenoiserRun,
    FlowConfig,
    MMDiTConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)


def config() -> DenoiserRun:
    return DenoiserRun(
        data=DataConfig(source="folder", root=tyro.MISSING, image_size=512, expressions_per_set=3, cache_latents=True),
        text=TextConfig(embeddings=tyro.MISSING),
        model=ModelConfig(
            mmdit=dataclasses.replace(MMDiTConfig.sd35_medium(), sample_size=64, remat="full"),
            autoencoder=AutoencoderConfig.sd3(),
            # 64 tokens for the 1024 patches of a reference. No face embedding: the bundled encoders know avatars only.
            conditioning=ConditioningConfig(identity_layers=2, identity_tokens=64),
            transformer_weights=tyro.MISSING,
            autoencoder_weights=tyro.MISSING,
        ),
        flow=FlowConfig(shift=3.0),
        # Adapters alone: a folder of images is little against what the released weights have seen, training those
        # takes three times the memory, and adapters can be taken away again. They start at zero and bear a higher rate
        # than released weights (IP-Adapter, arXiv 2308.06721, section 4.1, trains with 1e-4 and this weight decay).
        train=TrainConfig(
            steps=10_000,
            trainable=("adapters",),
            batch_size=8,
            learning_rate=1e-4,
            warmup_steps=500,
            weight_decay=0.01,
            ema_decay=0.999,
            compute_dtype="bfloat16",
            log_every=20,
            checkpoint_every=1000,
            sample_every=1000,
        ),
    )
