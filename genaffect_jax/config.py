"""Configuration: frozen dataclasses, validated when they are made, saved as JSON beside every checkpoint.

The classes hold numbers and words only, so that one JSON file rebuilds a model without any other code. Field
names of `MMDiTConfig` and `AutoencoderConfig` are those of the diffusers configuration files.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration value that is not allowed; the message names the field, the value and what is allowed."""


def _require(condition: bool, name: str, found: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={found}: {allowed}")


@dataclass(frozen=True)
class MMDiTConfig:
    """A multimodal diffusion transformer of the SD3 family (Esser et al. 2024, arXiv 2403.03206)."""

    sample_size: int = 16
    """Height and width of the latents the model was trained on, in latent pixels."""
    patch_size: int = 2
    """Side of one image token, in latent pixels."""
    in_channels: int = 16
    """Channels of the latents."""
    out_channels: int = 16
    """Channels of the predicted velocity."""
    num_layers: int = 6
    """Number of transformer blocks."""
    attention_head_dim: int = 64
    """Width of one attention head, H."""
    num_attention_heads: int = 3
    """Number of attention heads, N; the model's width is N * H."""
    joint_attention_dim: int = 192
    """Width of the text tokens before they are projected into the model."""
    caption_projection_dim: int = 192
    """Width of the text tokens inside the model; must equal the model's width."""
    pooled_projection_dim: int = 192
    """Width of the pooled text embedding that enters the timestep embedding; 0 leaves it out."""
    pos_embed_max_size: int = 32
    """Side of the full 2-D sin-cos position table, in tokens; smaller grids take its centre."""
    dual_attention_layers: tuple[int, ...] = ()
    """Blocks with a second, image-only attention (SD3.5-medium: 0 to 12)."""
    qk_norm: Literal["rms_norm", "none"] = "rms_norm"
    """Normalisation of queries and keys (SD3.5: rms_norm, SD3: none)."""
    register_tokens: int = 4
    """Learned tokens that stand in for the text stream; 0 means that text embeddings are given from outside."""
    scan_layers: bool = True
    """Run equal blocks as one scanned block: compiles faster, computes the same."""
    remat: Literal["none", "full"] = "none"
    """What the backward pass recomputes: nothing, or every block (less memory, about a third more time)."""

    @property
    def width(self) -> int:
        """Width D of the residual streams."""
        return self.attention_head_dim * self.num_attention_heads

    def __post_init__(self) -> None:
        for name in ("sample_size", "patch_size", "in_channels", "out_channels", "num_layers", "attention_head_dim",
                     "num_attention_heads", "joint_attention_dim", "pos_embed_max_size"):  # fmt: skip
            _require(getattr(self, name) >= 1, f"mmdit.{name}", getattr(self, name), "must be at least 1")
        _require(self.pooled_projection_dim >= 0, "mmdit.pooled_projection_dim", self.pooled_projection_dim, ">= 0")
        _require(self.register_tokens >= 0, "mmdit.register_tokens", self.register_tokens, "must be at least 0")
        _require(self.caption_projection_dim == self.width, "mmdit.caption_projection_dim",
                 self.caption_projection_dim, f"must equal the model's width {self.width}")  # fmt: skip
        _require(self.sample_size % self.patch_size == 0, "mmdit.sample_size", self.sample_size,
                 f"must be a multiple of patch_size {self.patch_size}")  # fmt: skip
        _require(self.sample_size // self.patch_size <= self.pos_embed_max_size, "mmdit.pos_embed_max_size",
                 self.pos_embed_max_size, f"must hold {self.sample_size // self.patch_size} tokens a side")  # fmt: skip
        bad = [i for i in self.dual_attention_layers if not 0 <= i < self.num_layers]
        _require(not bad, "mmdit.dual_attention_layers", bad, f"must lie in 0..{self.num_layers - 1}")


@dataclass(frozen=True)
class AutoencoderConfig:
    """An AutoencoderKL as SD3 uses it: no quantisation convolutions, latents shifted and scaled."""

    in_channels: int = 3
    """Channels of the pictures read."""
    out_channels: int = 3
    """Channels of the pictures written."""
    latent_channels: int = 16
    """Channels of the latents."""
    block_out_channels: tuple[int, ...] = (16, 32, 64, 64)
    """Channels at each resolution; every step but the last halves height and width."""
    layers_per_block: int = 1
    """Residual blocks per resolution in the encoder (the decoder has one more)."""
    norm_num_groups: int = 16
    """Groups of the group normalisation; divides every entry of block_out_channels."""
    scaling_factor: float = 1.0
    """Latents are `(z - shift_factor) * scaling_factor`."""
    shift_factor: float = 0.0
    """See scaling_factor."""

    @property
    def downsample(self) -> int:
        """Picture pixels per latent pixel, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __post_init__(self) -> None:
        _require(bool(self.block_out_channels), "autoencoder.block_out_channels", self.block_out_channels, "not empty")
        for c in self.block_out_channels:
            _require(c >= 1 and c % self.norm_num_groups == 0, "autoencoder.block_out_channels", c,
                     f"must be a positive multiple of norm_num_groups {self.norm_num_groups}")  # fmt: skip
        for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"):
            _require(getattr(self, name) >= 1, f"autoencoder.{name}", getattr(self, name), "must be at least 1")
        _require(self.scaling_factor > 0, "autoencoder.scaling_factor", self.scaling_factor, "must be positive")


@dataclass(frozen=True)
class ConditioningConfig:
    """What the two token makers read and how many tokens they hand to every block."""

    expression_width: int = 40
    """Numbers in one expression vector (40: action units, gaze and head of `faces.action_units`)."""
    expression_tokens: int = 8
    """Expression tokens per picture."""
    identity_layers: int = 2
    """Transformer layers that turn the reference's latent patches into identity tokens."""

    def __post_init__(self) -> None:
        for name in ("expression_width", "expression_tokens"):
            _require(getattr(self, name) >= 1, f"conditioning.{name}", getattr(self, name), "must be at least 1")
        _require(self.identity_layers >= 0, "conditioning.identity_layers", self.identity_layers, "must be at least 0")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the networks of one model."""

    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    """The denoiser."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The picture autoencoder; it is frozen while the denoiser trains."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Identity and expression tokens."""
    prediction: Literal["velocity", "clean"] = "velocity"
    """What the denoiser gives: the velocity (SD3), or the clean latents, from which the velocity follows."""
    autoencoder_weights: str = "package:autoencoder_tiny"
    """Where the autoencoder's weights come from: `package:NAME`, or a safetensors file."""

    def __post_init__(self) -> None:
        _require(self.mmdit.in_channels == self.autoencoder.latent_channels == self.mmdit.out_channels,
                 "mmdit.in_channels, out_channels", (self.mmdit.in_channels, self.mmdit.out_channels),
                 f"must equal autoencoder.latent_channels {self.autoencoder.latent_channels}")  # fmt: skip

    @property
    def image_size(self) -> int:
        """Side of the pictures the model was made for, in pixels."""
        return self.mmdit.sample_size * self.autoencoder.downsample


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from and how sets are put together."""

    source: Literal["procedural", "folder"] = "procedural"
    """`procedural`: avatars drawn by this package; `folder`: picture files below `root`."""
    root: Path | None = None
    """Folder of pictures (source `folder`): `<identity>/<expression>[_n].png`, or one with metadata.jsonl or .csv."""
    image_size: int = 128
    """Side of the pictures, in pixels."""
    identities: int = 512
    """Number of people (source `procedural`)."""
    expressions_per_identity: int = 8
    """Pictures of each person (source `procedural`)."""
    pose_scale: float = 1.0
    """How far gaze and head move at random in procedural pictures, 0 (not at all) to 1; words keep their own pose."""
    expressions_per_set: int = 3
    """Targets E in one training set, beside its reference; all show different expressions of one person."""
    holdout: float = 0.05
    """Share of the people kept out of training for evaluation and preview sheets."""
    max_rejected: float = 0.2
    """Largest share of unusable pictures that a run tolerates; a person left with one expression always stops it."""
    workers: int = 1
    """Worker processes of the input pipeline; 0 loads in the main process."""
    cache_latents: bool = False
    """Encode every picture once, before training, into a file of the working folder (for sources of fixed size)."""

    def __post_init__(self) -> None:
        _require(self.source != "folder" or self.root is not None, "data.root", self.root,
                 "source 'folder' needs a folder of pictures (--data.root DIR)")  # fmt: skip
        for name in ("image_size", "identities", "expressions_per_set"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")
        _require(self.expressions_per_identity >= 2, "data.expressions_per_identity", self.expressions_per_identity,
                 "must be at least 2: reference and target differ")  # fmt: skip
        _require(0.0 <= self.pose_scale <= 1.0, "data.pose_scale", self.pose_scale, "must lie in [0, 1]")
        _require(0.0 <= self.holdout < 1.0, "data.holdout", self.holdout, "must lie in [0, 1)")
        _require(0.0 <= self.max_rejected < 1.0, "data.max_rejected", self.max_rejected, "must lie in [0, 1)")
        _require(self.workers >= 0, "data.workers", self.workers, "must be at least 0")


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow with logit-normal timesteps and the SD3 resolution shift; dropout of the conditions."""

    logit_mean: float = 0.0
    """Mean of logit(sigma); larger trains more at high noise."""
    logit_std: float = 1.0
    """Standard deviation of logit(sigma)."""
    shift: float = 1.0
    """Resolution shift of sigma, `shift * s / (1 + (shift - 1) s)` (SD3: 3); used in training and sampling."""
    change_weight: float = 0.0
    """Extra loss weight of latent pixels where reference and target differ, `1 + w * difference / its mean`."""
    drop_identity: float = 0.1
    """Probability that a training example loses its identity tokens."""
    drop_expression: float = 0.1
    """Probability that a training example loses its expression tokens (independent of the identity's)."""

    def __post_init__(self) -> None:
        _require(self.logit_std > 0, "flow.logit_std", self.logit_std, "must be positive")
        _require(self.shift > 0, "flow.shift", self.shift, "must be positive")
        _require(self.change_weight >= 0, "flow.change_weight", self.change_weight, "must be at least 0")
        for name in ("drop_identity", "drop_expression"):
            _require(0.0 <= getattr(self, name) < 1.0, f"flow.{name}", getattr(self, name), "must lie in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, logging and checkpoints."""

    steps: int = 1000
    """Optimiser steps of the whole run."""
    batch_size: int = 16
    """Sets per step over all devices; each set holds `data.expressions_per_set` target pictures."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and convolutions (never of biases, norms or learned tokens)."""
    beta1: float = 0.9
    """AdamW first-moment decay."""
    beta2: float = 0.99
    """AdamW second-moment decay."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that sampling uses."""
    compute_dtype: DType = "float32"
    """Type of activations; parameters, norms, softmax statistics and the loss stay in float32."""
    seed: int = 0
    """Seed of initialisation, data order, noise and dropout."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""
    sheet_every: int = 0
    """Steps between preview sheets; 0 draws one at the end only."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        for name in ("warmup_steps", "sheet_every", "weight_decay", "seed"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must be at least 0")
        for name in ("learning_rate", "gradient_clip"):
            _require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be positive")
        for name in ("beta1", "beta2", "ema_decay"):
            _require(0.0 <= getattr(self, name) < 1.0, f"train.{name}", getattr(self, name), "must lie in [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out."""

    data: int = -1
    """Devices along the `data` axis (copies of the parameters); -1 takes all that remain."""
    fsdp: int = 1
    """Devices along the `fsdp` axis (parameters and optimiser state are cut over it)."""

    def __post_init__(self) -> None:
        _require(self.data == -1 or self.data >= 1, "mesh.data", self.data, "must be -1 or at least 1")
        _require(self.fsdp >= 1, "mesh.fsdp", self.fsdp, "must be at least 1")


@dataclass(frozen=True)
class Config:
    """One training run of the generator."""

    data: DataConfig = field(default_factory=DataConfig)
    """Pictures."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Training objective."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation, logging, checkpoints."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        _require(self.data.image_size == self.model.image_size, "data.image_size", self.data.image_size,
                 f"must equal mmdit.sample_size * autoencoder downsampling = {self.model.image_size}")  # fmt: skip


@dataclass(frozen=True)
class AutoencoderRun:
    """One training run of the autoencoder."""

    data: DataConfig = field(default_factory=DataConfig)
    """Pictures."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The network."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence to a unit Gaussian, per latent number."""
    edge_weight: float = 1.0
    """Weight of the loss on picture gradients, which keeps outlines sharp."""
    repeats: int = 1
    """Steps in a row that use one batch, each time moved, mirrored and recoloured anew on the device."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation, logging, checkpoints."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        _require(self.data.image_size % self.autoencoder.downsample == 0, "data.image_size", self.data.image_size,
                 f"must be a multiple of the autoencoder's downsampling {self.autoencoder.downsample}")  # fmt: skip
        _require(self.repeats >= 1, "repeats", self.repeats, "must be at least 1")
        for name in ("kl_weight", "edge_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")


T = TypeVar("T")


def to_json(config: object) -> str:
    """The configuration as indented JSON; paths become strings, tuples become lists."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_json: {type(config).__name__} is no configuration")
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(cls: type[T], text: str) -> T:
    """Rebuilds the configuration of type `cls` that `to_json` wrote.

    Raises:
        ConfigError: unknown or missing keys (all are named), or a value that is not allowed.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as e:
        raise ConfigError(f"configuration: not JSON ({e})") from e
    return _build(cls, values, cls.__name__)


def _build(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r}: must be a table of {kind.__name__} fields")
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        unknown, missing = sorted(set(value) - names), sorted(names - set(value))
        if unknown or missing:
            raise ConfigError(f"{name}: unknown fields {unknown}, missing fields {missing} (has {sorted(names)})")
        return kind(**{key: _build(hints[key], v, f"{name}.{key}") for key, v in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), value, name)
    if origin is Literal:
        _require(value in arguments, name, value, f"must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{name}={value!r}: must be a list")
        return tuple(_build(arguments[0], v, name) for v in value)
    if kind is Path:
        return Path(value)
    number = int | float if kind is float else kind
    _require(isinstance(value, number) and not (kind is not bool and isinstance(value, bool)), name, repr(value),
             f"must be of type {kind.__name__}")  # fmt: skip
    return kind(value)
