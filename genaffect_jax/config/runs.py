"""Training runs: images, prompts, objective, optimisation, devices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genaffect_jax.config.as_json import ADDED_LATER
from genaffect_jax.config.auxiliary import AuxiliaryConfig
from genaffect_jax.config.networks import AutoencoderConfig, ModelConfig
from genaffect_jax.errors import require

DType = Literal["float32", "bfloat16"]
# Tokens of the two CLIP encoders in every prompt; T5's come after them.
CLIP_TOKENS = 77


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how sets are put together."""

    source: Literal["procedural", "folder"] = "procedural"
    """`procedural`: avatars drawn by this package; `folder`: image files below `root`."""
    root: Path | None = None
    """Folder of images (source `folder`): `<identity>/<expression>[_n].png`, or one with metadata.jsonl or .csv."""
    align: Literal["none", "face"] = field(default="none", metadata=ADDED_LATER)
    """How the images of `root` were made: `face` by `python -m genaffect_jax.prepare photos`, `none` in any other
    way. It changes nothing in training; images given to the trained model are treated the same way unless told
    otherwise."""
    image_size: int = 128
    """Side of the images, in pixels."""
    identities: int = 512
    """Number of people (source `procedural`)."""
    expressions_per_identity: int = 8
    """Images of each person (source `procedural`)."""
    pose_scale: float = 1.0
    """How far gaze and head move at random in procedural images, 0 (not at all) to 1; words keep their own pose."""
    expressions_per_set: int = 3
    """Targets E in one training set, beside its reference; all show different expressions of one person."""
    holdout: float = 0.05
    """Share of the people kept out of training for evaluation and preview sheets."""
    max_rejected: float = 0.2
    """Largest share of unusable images that a run tolerates; a person left with one expression always stops it."""
    workers: int = 1
    """Worker processes of the input pipeline; 0 loads in the main process."""
    cache_latents: bool = False
    """Encode every image once, before training, into a file of the run folder (for sources of fixed size)."""

    def __post_init__(self) -> None:
        require(
            self.source != "folder" or self.root is not None,
            "data.root",
            self.root,
            "source 'folder' needs a folder of images (--data.root DIR)",
        )
        for name in ("image_size", "identities", "expressions_per_set"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")
        require(
            self.expressions_per_identity >= 2,
            "data.expressions_per_identity",
            self.expressions_per_identity,
            "must be at least 2: reference and target differ",
        )
        require(0.0 <= self.pose_scale <= 1.0, "data.pose_scale", self.pose_scale, "must lie in [0, 1]")
        require(0.0 <= self.holdout < 1.0, "data.holdout", self.holdout, "must lie in [0, 1)")
        require(0.0 <= self.max_rejected < 1.0, "data.max_rejected", self.max_rejected, "must lie in [0, 1)")
        require(self.workers >= 0, "data.workers", self.workers, "must be at least 0")


@dataclass(frozen=True)
class TextConfig:
    """Prompts of models with a text stream. They are encoded beforehand by `python -m genaffect_jax.prepare
    prompts`."""

    template: str = "a portrait of a person, {word} expression"
    """Prompt of an image whose expression is one word of the vocabulary, or neutral; {word} stands for the word."""
    plain: str = "a portrait of a person"
    """Prompt of every other image: blends and action units."""
    negative: str = ""
    """Prompt that stands for no text, in training (flow.drop_text) and in guidance."""
    max_sequence_length: int = 77
    """Tokens of the T5 encoder; longer prompts are cut (the two CLIP encoders always have 77)."""
    embeddings: Path | None = None
    """Encoded prompts: the file that `python -m genaffect_jax.prepare prompts` wrote. Models with register tokens have
    none."""

    def __post_init__(self) -> None:
        require("{word}" in self.template, "text.template", repr(self.template), "must contain {word}")
        require(
            self.max_sequence_length >= 1, "text.max_sequence_length", self.max_sequence_length, "must be at least 1"
        )


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow: distribution of timesteps, the SD3 resolution shift; dropout of the conditions."""

    timesteps: Literal["logit_normal", "uniform", "mode"] = field(default="logit_normal", metadata=ADDED_LATER)
    """Distribution of sigma in training, before the shift: `logit_normal`, evenly `uniform`, or SD3's `mode`, which has
    more at the middle or at both ends."""
    mode_scale: float = field(default=1.29, metadata=ADDED_LATER)
    """Scale s of `mode`: above 0 more in the middle, below 0 more at the ends; -1 to 2 / (pi - 2), about 1.75."""
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
    drop_text: float = 0.1
    """Probability that a training example gets `text.negative` for its prompt (independent of the other two)."""
    drop_all: float = 0.05
    """Probability that a person's examples lose identity, expression and text together, beside the three above."""

    def __post_init__(self) -> None:
        require(
            -1.0 <= self.mode_scale <= 2.0 / (math.pi - 2.0),
            "flow.mode_scale",
            self.mode_scale,
            "must lie in [-1, 2 / (pi - 2)]",
        )
        require(self.logit_std > 0, "flow.logit_std", self.logit_std, "must be positive")
        require(self.shift > 0, "flow.shift", self.shift, "must be positive")
        require(self.change_weight >= 0, "flow.change_weight", self.change_weight, "must be at least 0")
        for name in ("drop_identity", "drop_expression", "drop_text", "drop_all"):
            require(0.0 <= getattr(self, name) < 1.0, f"flow.{name}", getattr(self, name), "must lie in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, logging and checkpoints."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    trainable: tuple[str, ...] = ("everything",)
    """Which parameters train: `everything`, `adapters`, or patterns of names, the first that matches decides;
    `*` stands for anything, a `!` in front keeps what matches fixed."""
    batch_size: int = 16
    """Sets per step over all devices; each set holds `data.expressions_per_set` target images."""
    gradient_accumulation_steps: int = field(default=1, metadata=ADDED_LATER)
    """Parts that each batch is computed in, one after the other: the same step with the activations of a part. It
    divides `batch_size`, and so must the devices that cut the batch divide a part. The denoiser's training only."""
    optimizer: Literal["adamw", "adafactor"] = field(default="adamw", metadata=ADDED_LATER)
    """`adamw`, or `adafactor`: second moments of matrices as their row and column means, no first moments."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and convolutions (never of biases, norms or learned tokens)."""
    beta1: float = 0.9
    """First-moment decay (adamw)."""
    beta2: float = 0.99
    """Second-moment decay (adamw)."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""
    max_consecutive_skips: int = field(default=10, metadata=ADDED_LATER)
    """Steps in a row whose loss or gradients are not finite, and which therefore change nothing, that end the run."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that sampling uses."""
    compute_dtype: DType = "float32"
    """Type of activations; parameters, norms, softmax statistics and the loss stay in float32."""
    seed: int = 0
    """Seed of initialisation, data order, noise and dropout."""
    profile_at: int = field(default=0, metadata=ADDED_LATER)
    """First of three steps that are profiled into `profile/` of the run folder; 0 profiles none. The first step of
    a process, which compiles, is a poor choice."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""
    sample_every: int = 0
    """Steps between preview sheets; 0 draws one at the end only."""
    probe_every: int = 200
    """Steps between measurements of how much worse the denoiser is with another person's references, and with another
    expression (`probe.png`); every checkpoint is measured too. 0 never measures. Only the denoiser's training does."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always written at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept."""
    keep_best: int = field(default=1, metadata=ADDED_LATER)
    """Number of checkpoints kept beside them that measured best on held-out people; 0 keeps none. Those that were not
    measured never count."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_consecutive_skips",
            "gradient_accumulation_steps",
        ):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            "train.gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            f"must divide train.batch_size = {self.batch_size}",
        )
        require(
            bool(self.trainable) and all(self.trainable),
            "train.trainable",
            self.trainable,
            "must name or match something",
        )
        for name in ("warmup_steps", "sample_every", "probe_every", "keep_best", "profile_at", "weight_decay", "seed"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must be at least 0")
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be positive")
        for name in ("beta1", "beta2", "ema_decay"):
            require(0.0 <= getattr(self, name) < 1.0, f"train.{name}", getattr(self, name), "must lie in [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out."""

    data: int = -1
    """Devices along the `data` axis (copies of the parameters); -1 takes all that remain."""
    fsdp: int = 1
    """Devices along the `fsdp` axis (parameters and optimizer state are cut over it)."""
    tensor: int = field(default=1, metadata=ADDED_LATER)
    """Devices along the `tensor` axis: they share each image, heads and feed-forward features are cut over it."""

    def __post_init__(self) -> None:
        require(self.data == -1 or self.data >= 1, "mesh.data", self.data, "must be -1 or at least 1")
        for name in ("fsdp", "tensor"):
            require(getattr(self, name) >= 1, f"mesh.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True)
class DenoiserRun:
    """One training run of the denoiser."""

    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    text: TextConfig = field(default_factory=TextConfig)
    """Prompts, for models with a text stream."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Training objective."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """Optional losses on the predicted image."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation, logging, checkpoints."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    @property
    def text_tokens(self) -> int | None:
        """Text tokens T of each prompt; None for a model with register tokens, which reads no prompts."""
        return CLIP_TOKENS + self.text.max_sequence_length if self.model.mmdit.reads_prompts else None

    def __post_init__(self) -> None:
        heads = self.model.mmdit.num_attention_heads
        auxiliary = self.auxiliary.identity_weight or self.auxiliary.expression_weight
        require(
            self.train.gradient_accumulation_steps == 1 or not auxiliary,
            "train.gradient_accumulation_steps",
            self.train.gradient_accumulation_steps,
            "must be 1 with auxiliary losses: they are means over those examples that count",
        )
        require(
            heads % self.mesh.tensor == 0,
            "mesh.tensor",
            self.mesh.tensor,
            f"must divide mmdit.num_attention_heads = {heads}",
        )
        require(
            self.data.image_size == self.model.image_size,
            "data.image_size",
            self.data.image_size,
            f"must equal mmdit.sample_size * autoencoder downsampling = {self.model.image_size}",
        )
        if self.model.mmdit.register_tokens:
            require(
                self.text.embeddings is None,
                "text.embeddings",
                self.text.embeddings,
                "a model with register tokens (mmdit.register_tokens > 0) reads no prompts",
            )
            require(
                not self.model.mmdit.pooled_projection_dim,
                "mmdit.pooled_projection_dim",
                self.model.mmdit.pooled_projection_dim,
                "must be 0 with register tokens",
            )
        else:
            require(
                self.text.embeddings is not None,
                "text.embeddings",
                None,
                "a model without register tokens needs encoded prompts; make the file with "
                "python -m genaffect_jax.prepare prompts",
            )
            require(
                self.model.mmdit.pooled_projection_dim >= 1,
                "mmdit.pooled_projection_dim",
                0,
                "must be at least 1 without register tokens",
            )


@dataclass(frozen=True)
class AutoencoderRun:
    """One training run of the autoencoder."""

    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The network."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence to a unit Gaussian, per latent number."""
    edge_weight: float = 1.0
    """Weight of the loss on image gradients, which keeps outlines sharp."""
    repeats: int = 1
    """Steps in a row that use one batch, each time moved, mirrored and recoloured anew on the device."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation, logging, checkpoints."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        require(
            self.data.image_size % self.autoencoder.downsample == 0,
            "data.image_size",
            self.data.image_size,
            f"must be a multiple of the autoencoder's downsampling {self.autoencoder.downsample}",
        )
        require(self.repeats >= 1, "repeats", self.repeats, "must be at least 1")
        require(
            self.train.gradient_accumulation_steps == 1,
            "train.gradient_accumulation_steps",
            self.train.gradient_accumulation_steps,
            "must be 1: only the denoiser's training accumulates",
        )
        for name in ("kl_weight", "edge_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
