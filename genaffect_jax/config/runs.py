"""Training runs: images, prompts, loss, optimization, devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genaffect_jax.config.as_json import ADDED_LATER
from genaffect_jax.config.distillation import DistillationConfig
from genaffect_jax.config.file_name import FileName
from genaffect_jax.config.flow import FlowConfig
from genaffect_jax.config.networks import AutoencoderConfig, ModelConfig
from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.config.sampling import LARGEST_SEED, SamplingDefaults
from genaffect_jax.errors import require

DType = Literal["float32", "bfloat16"]
# Tokens of the two CLIP encoders in every prompt; the tokens of T5 follow them.
CLIP_TOKENS = 77


@dataclass(frozen=True)
class DataConfig:
    """Source of the images and composition of the training sets."""

    source: Literal["procedural", "folder"] = "procedural"
    """`procedural`: avatars rendered by this package; `folder`: image files below `root`."""
    root: Path | None = None
    """Folder of images (source `folder`): `<identity>/<expression>[_n].png`, or with metadata.jsonl or metadata.csv."""
    align: Literal["none", "face"] = field(default="none", metadata=ADDED_LATER)
    """Alignment of the images in `root`: `face` if `python -m genaffect_jax.prepare photos` wrote them, else `none`.
    Training ignores it; it is the default for image files given to the trained model."""
    image_size: int = 128
    """Side of the images, in pixels."""
    identities: int = 512
    """Number of people (source `procedural`)."""
    expressions_per_identity: int = 8
    """Images of each person (source `procedural`)."""
    pose_scale: float = 1.0
    """Random movement of gaze and head in procedural images, 0 (none) to 1; the pose of a word stays."""
    expressions_per_set: int = 3
    """Targets E of one training set, beside its reference; all show different expressions of one person."""
    pairs: Literal["cross", "self"] = field(default="cross", metadata=ADDED_LATER)
    """`cross`: the reference shows another expression than the targets; `self`: it is the target itself, so that a set
    has one target. Self-reconstruction is for comparison: it rewards copying the reference's expression."""
    holdout: float = 0.05
    """Share of the people held out of training, for evaluation and preview sheets."""
    max_rejected: float = 0.2
    """Largest tolerated share of unusable images. A person with fewer than two expressions is always an error."""
    workers: int | None = None
    """Worker processes of the input pipeline; 0 loads in the main process. None: 0 for cached latents, and for pixels
    the processors of this process but one, at least 1 and at most 16."""
    cache_latents: bool = False
    """Encode every image once, before training, into a file of the run folder."""
    device_cache_gib: float = field(default=8.0, metadata=ADDED_LATER)
    """Largest set of cached latents, in GiB, that is kept whole on every device, at most a quarter of its memory; a
    larger one is streamed. 0 always streams."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "data.", LARGEST_SIZE, {"identities": 10**8, "workers": 1024})
        require(
            self.source != "folder" or self.root is not None,
            "data.root",
            self.root,
            "source 'folder' needs a folder of images",
        )
        for name in ("image_size", "identities", "expressions_per_set"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")
        require(
            self.expressions_per_identity >= 2,
            "data.expressions_per_identity",
            self.expressions_per_identity,
            "must be at least 2: reference and target differ",
        )
        require(
            self.pairs == "cross" or self.expressions_per_set == 1,
            "data.expressions_per_set",
            self.expressions_per_set,
            "must be 1 with pairs 'self', where every target is its own reference",
        )
        require(0.0 <= self.pose_scale <= 1.0, "data.pose_scale", self.pose_scale, "must lie in [0, 1]")
        require(0.0 <= self.holdout < 1.0, "data.holdout", self.holdout, "must lie in [0, 1)")
        require(0.0 <= self.max_rejected < 1.0, "data.max_rejected", self.max_rejected, "must lie in [0, 1)")
        require(self.workers is None or self.workers >= 0, "data.workers", self.workers, "must be None or at least 0")
        require(self.device_cache_gib >= 0, "data.device_cache_gib", self.device_cache_gib, "must be at least 0")


@dataclass(frozen=True)
class TextConfig:
    """Prompts of models with a text stream, encoded before training by `python -m genaffect_jax.prepare prompts`."""

    template: str = "a portrait of a person, {word} expression"
    """Prompt of an image whose expression is neutral or one word of the vocabulary; {word} stands for the word."""
    plain: str = "a portrait of a person"
    """Prompt of all other images: blends and action units."""
    negative: str = ""
    """Prompt of the unconditional branch, in training (flow.drop_text) and in guidance."""
    max_sequence_length: int = 77
    """Tokens of the T5 encoder; longer prompts are truncated. The two CLIP encoders always have 77."""
    embeddings: Path | None = None
    """Prompt table written by `python -m genaffect_jax.prepare prompts`; none for models with register tokens."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "text.", LARGEST_SIZE)
        require("{word}" in self.template, "text.template", repr(self.template), "must contain {word}")
        require(
            self.max_sequence_length >= 1, "text.max_sequence_length", self.max_sequence_length, "must be at least 1"
        )


@dataclass(frozen=True)
class AuxiliaryConfig:
    """Losses of frozen face encoders on the decoded prediction at low noise; a weight of 0 switches a loss off."""

    identity_weight: float = 0.0
    """Weight of the identity distance, 1 - cosine to the reference's embedding."""
    expression_weight: float = 0.0
    """Weight of the expression distance, the mean absolute difference to the target vector."""
    largest_sigma: float = 0.3
    """Highest noise level of the examples that count; above it the prediction is too blurred to be read as a face."""
    identity_encoder: FileName = "package:identity_avatar"
    """Weights of the identity encoder: `package:NAME` or a file; read only if its weight is above 0."""
    expression_encoder: FileName = "package:expression_avatar"
    """Weights of the expression encoder: `package:NAME` or a file; read only if its weight is above 0."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "auxiliary.")
        for name in ("identity_weight", "expression_weight"):
            require(getattr(self, name) >= 0, f"auxiliary.{name}", getattr(self, name), "must be at least 0")
        require(0.0 < self.largest_sigma <= 1.0, "auxiliary.largest_sigma", self.largest_sigma, "must lie in (0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """Optimization, logging and checkpoints."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    trainable: tuple[str, ...] = ("everything",)
    """Trainable parameters: `everything`, `adapters`, or name patterns. The first pattern that matches a name decides;
    `*` matches anything, `!` in front freezes."""
    batch_size: int = 16
    """Sets per step over all devices; each set holds `data.expressions_per_set` target images."""
    gradient_accumulation_steps: int = field(default=1, metadata=ADDED_LATER)
    """Number of equal parts of a batch, computed one after the other: the same step with the activations of one part.
    It must divide `batch_size`, and the devices along data and fsdp must divide a part. Denoiser only."""
    optimizer: Literal["adamw", "adafactor"] = field(default="adamw", metadata=ADDED_LATER)
    """`adamw`, or `adafactor`: second moments of matrices as row and column means, no first moments."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and convolutions (never of biases, norms or learned tokens)."""
    beta1: float = 0.9
    """First-moment decay (adamw)."""
    beta2: float = 0.99
    """Second-moment decay (adamw)."""
    gradient_clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down."""
    max_consecutive_skips: int = field(default=10, metadata=ADDED_LATER)
    """Stop after this many consecutive steps with a non-finite loss or gradient; each such step is skipped."""
    ema_decay: float = 0.99
    """Decay of the exponential moving average of the weights, which sampling uses."""
    compute_dtype: DType = "float32"
    """Type of activations. Parameters, norms, softmax statistics and the loss are float32."""
    seed: int = 0
    """Seed of initialisation, data order, noise and dropout, 0 to 2^64 - 1."""
    deterministic: bool = field(default=False, metadata=ADDED_LATER)
    """Repeat to the bit on GPUs too, with a new compilation cache as well: slower programs, and an environment that is
    recorded and must stay the same (docs/guide/fault_tolerance.md#exact-repetition)."""
    profile_at: int = field(default=0, metadata=ADDED_LATER)
    """First of three steps profiled into `profile/` of the run folder; 0 for none. The first step of a process
    includes compilation."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""
    sample_every: int = 0
    """Steps between preview sheets; 0 for one at the end only."""
    probe_every: int = 200
    """Steps between runs of the conditioning probe: the loss with another person's references, and with another
    expression (`probe.png`). Every checkpoint is probed too; 0 switches the probe off. Denoiser only."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one more is always written at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep."""
    keep_best: int = field(default=1, metadata=ADDED_LATER)
    """Number of checkpoints to keep beside them, those with the lowest loss on held-out people; 0 for none."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "train.", limits={"seed": LARGEST_SEED, "batch_size": 2**20})
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
        for name in ("warmup_steps", "sample_every", "probe_every", "keep_best", "profile_at", "weight_decay"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must be at least 0")
        require(0 <= self.seed <= LARGEST_SEED, "train.seed", self.seed, f"must be 0 to {LARGEST_SEED}")
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be positive")
        for name in ("beta1", "beta2", "ema_decay"):
            require(0.0 <= getattr(self, name) < 1.0, f"train.{name}", getattr(self, name), "must lie in [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """Layout of the devices."""

    data: int = -1
    """Devices along the `data` axis, each with a copy of the parameters; -1 for all that remain."""
    fsdp: int = 1
    """Devices along the `fsdp` axis, over which parameters and optimizer state are sharded."""
    tensor: int = field(default=1, metadata=ADDED_LATER)
    """Devices along the `tensor` axis, over which heads and feed-forward features are sharded."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "mesh.", LARGEST_SIZE)
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
    """Noise levels, loss weights and dropout of conditions."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """Optional losses on the predicted image."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig, metadata=ADDED_LATER)
    """A teacher, for a student that samples in few steps."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults, metadata=ADDED_LATER)
    """How the model is sampled where nothing else is asked for. Training does not depend on it."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimization, logging, checkpoints."""
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
            "must be 1 with auxiliary losses, which are means over the examples at low noise",
        )
        require(
            self.distillation.teacher is None or not auxiliary,
            "auxiliary",
            "weights above 0",
            "must be 0 with distillation.teacher: the teacher's images are the only target",
        )
        require(
            not self.flow.consistency or self.data.expressions_per_set >= 2,
            "flow.consistency",
            self.flow.consistency,
            f"must be 0 with data.expressions_per_set = {self.data.expressions_per_set}: one image has nobody to see",
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
        if self.model.mmdit.reads_prompts:
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
        else:
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
    """Weight of the loss on image gradients, for sharp outlines."""
    repeats: int = 1
    """Consecutive steps on one batch, moved, mirrored and recoloured anew in each."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimization, logging, checkpoints."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        require_usable_numbers(self)
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
            "must be 1; only the denoiser's training accumulates gradients",
        )
        for name in ("kl_weight", "edge_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
