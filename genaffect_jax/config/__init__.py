"""Configuration: frozen dataclasses, validated when they are made, saved as JSON beside every checkpoint.

The classes hold numbers and words only, so that one JSON file rebuilds a model without any other code.
"""

from genaffect_jax.config.as_json import from_json, to_json
from genaffect_jax.config.auxiliary import AuxiliaryConfig
from genaffect_jax.config.distributed import DistributedConfig
from genaffect_jax.config.encoders import EncoderRun, FaceEncoderConfig
from genaffect_jax.config.networks import AutoencoderConfig, ConditioningConfig, LoraConfig, MMDiTConfig, ModelConfig
from genaffect_jax.config.runs import (
    AutoencoderRun,
    DataConfig,
    DenoiserRun,
    DType,
    FlowConfig,
    MeshConfig,
    TextConfig,
    TrainConfig,
)
from genaffect_jax.config.sampling import GuidanceMode, SamplingConfig, Solver

__all__ = [
    "AutoencoderConfig",
    "AutoencoderRun",
    "AuxiliaryConfig",
    "ConditioningConfig",
    "DType",
    "DataConfig",
    "DenoiserRun",
    "DistributedConfig",
    "EncoderRun",
    "FaceEncoderConfig",
    "FlowConfig",
    "GuidanceMode",
    "LoraConfig",
    "MMDiTConfig",
    "MeshConfig",
    "ModelConfig",
    "SamplingConfig",
    "Solver",
    "TextConfig",
    "TrainConfig",
    "from_json",
    "to_json",
]
