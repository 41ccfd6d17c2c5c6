"""Configuration: frozen dataclasses, validated on construction, saved as JSON beside every checkpoint.

Fields are numbers, words and nested configurations, so one JSON file describes a model completely.
"""

from genaffect_jax.config.as_json import from_json, to_json, with_changes
from genaffect_jax.config.distillation import DistillationConfig
from genaffect_jax.config.distributed import DistributedConfig
from genaffect_jax.config.encoders import EncoderRun, FaceEncoderConfig
from genaffect_jax.config.flow import FlowConfig
from genaffect_jax.config.networks import (
    AutoencoderConfig,
    ConditionAttention,
    ConditioningConfig,
    LoraConfig,
    MMDiTConfig,
    ModelConfig,
)
from genaffect_jax.config.runs import (
    AutoencoderRun,
    AuxiliaryConfig,
    DataConfig,
    DenoiserRun,
    DType,
    MeshConfig,
    TextConfig,
    TrainConfig,
)
from genaffect_jax.config.sampling import GuidanceMode, SamplingConfig, SamplingDefaults, Solver

__all__ = [
    "AutoencoderConfig",
    "AutoencoderRun",
    "AuxiliaryConfig",
    "ConditionAttention",
    "ConditioningConfig",
    "DType",
    "DataConfig",
    "DenoiserRun",
    "DistillationConfig",
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
    "SamplingDefaults",
    "Solver",
    "TextConfig",
    "TrainConfig",
    "from_json",
    "to_json",
    "with_changes",
]
