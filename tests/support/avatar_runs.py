"""Run folders of tiny avatar models: register tokens, face embeddings, predictions of clean latents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support.face_encoder_files import CONFIGS, random_file
from support.sd3_runs import MMDIT, run_config, save_run

from genaffect_jax.checkpoints.components import install_encoders
from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import ConditioningConfig

ENCODER = CONFIGS["transformer_identity"]


def save_avatar_run(folder: Path, encoder: Path) -> None:
    """Writes a run folder with random weights.

    Args:
        folder: the run folder.
        encoder: file for random weights of the identity encoder.
    """
    random_file(ENCODER, encoder)
    registers = dataclasses.replace(
        MMDIT, num_layers=2, register_tokens=3, pooled_projection_dim=0, dual_attention_layers=()
    )
    config = run_config()
    model = dataclasses.replace(
        config.model,
        mmdit=registers,
        conditioning=ConditioningConfig(
            expression_tokens=2, identity_layers=1, identity_tokens=5, identity_embedding=ENCODER.width
        ),
        autoencoder=dataclasses.replace(config.model.autoencoder, layers_per_block=1),
        prediction="x0",
        identity_encoder=str(encoder),
    )
    config = dataclasses.replace(config, model=model, text=dataclasses.replace(config.text, embeddings=None))
    save_run(folder, config)
    install_encoders(RunDir(folder), config.model)
