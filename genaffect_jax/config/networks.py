"""Sizes of the networks. `MMDiTConfig` and `AutoencoderConfig` use the field names of diffusers' `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genaffect_jax.config.as_json import ADDED_LATER
from genaffect_jax.config.file_name import FileName
from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.errors import require

ConditionAttention = Literal["decoupled", "concatenated", "text"]


@dataclass(frozen=True)
class MMDiTConfig:
    """A multimodal diffusion transformer of the SD3 family (Esser et al. 2024, arXiv 2403.03206)."""

    sample_size: int = 16
    """Height and width of the latents, in latent pixels."""
    patch_size: int = 2
    """Side of one image token, in latent pixels."""
    in_channels: int = 16
    """Channels of the latents."""
    out_channels: int = field(init=False)
    """Channels of the prediction; always those of the latents."""
    num_layers: int = 6
    """Number of transformer blocks."""
    attention_head_dim: int = 64
    """Width H of one attention head."""
    num_attention_heads: int = 3
    """Number N of attention heads; the model's width is N * H."""
    joint_attention_dim: int = 192
    """Width of the text tokens before they are projected into the model."""
    caption_projection_dim: int = field(init=False)
    """Width of the text tokens inside the model; always the model's width."""
    pooled_projection_dim: int = 0
    """Width of the pooled text embedding that enters the timestep embedding; 0 leaves it out."""
    pos_embed_max_size: int = 32
    """Side of the full 2-D sin-cos position table, in tokens; smaller grids take its centre."""
    dual_attention_layers: tuple[int, ...] = ()
    """Indices of blocks with a second, image-only attention (SD3.5-medium: 0 to 12)."""
    qk_norm: Literal["rms_norm", "none"] = "rms_norm"
    """Normalisation of queries and keys (SD3.5: rms_norm, SD3: none)."""
    register_tokens: int = 4
    """Number of learned tokens in place of text tokens; 0 for a model that reads prompts."""
    scan_layers: bool = True
    """Compile equal blocks once and scan over them: compilation is faster, results are equal."""
    remat: Literal["none", "named", "dots", "full"] = "none"
    """Rematerialisation. `none` recomputes nothing in the backward pass; `named` keeps the results of matrix products
    with weights, of attention kernels and the inputs of cuDNN's; `dots` recomputes attention too; `full` recomputes
    every block (least memory, a third more time)."""

    @property
    def tokens_per_side(self) -> int:
        """Rows and columns of image tokens."""
        return self.sample_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Number L of image tokens."""
        return self.tokens_per_side**2

    @property
    def reads_prompts(self) -> bool:
        """Whether the model takes text embeddings; otherwise it has register tokens in their place."""
        return self.register_tokens == 0

    @property
    def width(self) -> int:
        """Width D of the residual streams."""
        return self.attention_head_dim * self.num_attention_heads

    def __post_init__(self) -> None:
        require_usable_numbers(self, "mmdit.", LARGEST_SIZE)
        object.__setattr__(self, "out_channels", self.in_channels)
        object.__setattr__(self, "caption_projection_dim", self.width)
        for name in (
            "sample_size",
            "patch_size",
            "in_channels",
            "num_layers",
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "pos_embed_max_size",
        ):
            require(getattr(self, name) >= 1, f"mmdit.{name}", getattr(self, name), "must be at least 1")
        require(
            self.pooled_projection_dim >= 0,
            "mmdit.pooled_projection_dim",
            self.pooled_projection_dim,
            "must be at least 0",
        )
        require(self.register_tokens >= 0, "mmdit.register_tokens", self.register_tokens, "must be at least 0")
        require(
            self.sample_size % self.patch_size == 0,
            "mmdit.sample_size",
            self.sample_size,
            f"must be a multiple of patch_size {self.patch_size}",
        )
        require(
            self.tokens_per_side <= self.pos_embed_max_size,
            "mmdit.pos_embed_max_size",
            self.pos_embed_max_size,
            f"must be at least {self.tokens_per_side}, the tokens of one side",
        )
        bad = [i for i in self.dual_attention_layers if not 0 <= i < self.num_layers]
        require(not bad, "mmdit.dual_attention_layers", bad, f"must lie in 0..{self.num_layers - 1}")

    @classmethod
    def sd3_medium(cls) -> MMDiTConfig:
        """Stable Diffusion 3 medium: 24 blocks of width 1536."""
        return cls(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
            qk_norm="none",
            register_tokens=0,
        )

    @classmethod
    def sd35_medium(cls) -> MMDiTConfig:
        """Stable Diffusion 3.5 medium: 24 blocks of width 1536, the first 13 with a second, image-only attention."""
        return cls(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
            register_tokens=0,
        )

    @classmethod
    def sd35_large(cls) -> MMDiTConfig:
        """Stable Diffusion 3.5 large: 38 blocks of width 2432."""
        return cls(
            sample_size=128,
            num_layers=38,
            attention_head_dim=64,
            num_attention_heads=38,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
            register_tokens=0,
        )

    @classmethod
    def avatar_s(cls) -> MMDiTConfig:
        """The 256-px avatar model, trained from scratch on one GPU: 8 blocks of width 256 on 32x32 latents, no text.

        256 px and an autoencoder of 8 make 32x32 latents; patches of 2 make 256 image tokens, so that attention is a
        tenth of the arithmetic. 22.7 M parameters with branches and condition projectors, in 8 bits small enough for a
        package. The 8 register tokens make the joint sequence (264) a multiple of 8, which tensor cores need.
        """
        return cls(
            sample_size=32,
            num_layers=8,
            attention_head_dim=64,
            num_attention_heads=4,
            joint_attention_dim=256,
            pooled_projection_dim=0,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            register_tokens=8,
        )

    @classmethod
    def avatar_tiny(cls) -> MMDiTConfig:
        """The smallest avatar model: 5 blocks of width 128 on 16x16 latents; it trains on a CPU in minutes."""
        return cls(
            sample_size=16,
            num_layers=5,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=128,
            pooled_projection_dim=0,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            register_tokens=4,
        )


@dataclass(frozen=True)
class AutoencoderConfig:
    """An AutoencoderKL of the SD3 family: no quantisation convolutions; latents are shifted and scaled."""

    in_channels: int = 3
    """Channels of the encoder's images."""
    out_channels: int = 3
    """Channels of the decoder's images."""
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
        """Image pixels per latent pixel, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __post_init__(self) -> None:
        require_usable_numbers(self, "autoencoder.", LARGEST_SIZE)
        require(self.norm_num_groups >= 1, "autoencoder.norm_num_groups", self.norm_num_groups, "must be at least 1")
        require(
            bool(self.block_out_channels),
            "autoencoder.block_out_channels",
            self.block_out_channels,
            "must not be empty",
        )
        for c in self.block_out_channels:
            require(
                c >= 1 and c % self.norm_num_groups == 0,
                "autoencoder.block_out_channels",
                c,
                f"must be a positive multiple of norm_num_groups {self.norm_num_groups}",
            )
        for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"):
            require(getattr(self, name) >= 1, f"autoencoder.{name}", getattr(self, name), "must be at least 1")
        require(self.scaling_factor > 0, "autoencoder.scaling_factor", self.scaling_factor, "must be positive")

    @classmethod
    def sd3(cls) -> AutoencoderConfig:
        """The autoencoder of SD3 and SD3.5: 8 times smaller latents with 16 channels."""
        return cls(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            norm_num_groups=32,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        )

    @classmethod
    def avatar_s(cls) -> AutoencoderConfig:
        """The autoencoder of `avatar_s`: 256 px images become 32 x 32 latents with 16 channels.

        Twice the channels of `avatar_tiny` and two residual blocks per resolution: 5.3 M parameters, 11 MB in bfloat16,
        small enough for a package. The flat colours and thin lines of avatars need no more depth, and decoding stays
        cheap beside denoising. Training measures shift and scale at its end and writes them into the weight file.
        """
        return cls(block_out_channels=(32, 64, 128, 128), layers_per_block=2, norm_num_groups=16)

    @classmethod
    def avatar_tiny(cls) -> AutoencoderConfig:
        """Small enough for a CPU: 128 px images become 16 x 16 latents with 16 channels."""
        return cls(
            block_out_channels=(16, 32, 64, 64),
            layers_per_block=1,
            norm_num_groups=16,
            # Measured on the bundled weights (`training.autoencoder.loss.latent_statistics`).
            scaling_factor=1.0150886689138257,
            shift_factor=0.1888701319694519,
        )


@dataclass(frozen=True)
class ConditioningConfig:
    """Inputs and sizes of the two condition projectors, and how image tokens attend to what they make."""

    attention: ConditionAttention = field(default="decoupled", metadata=ADDED_LATER)
    """`decoupled`: a cross-attention to the identity tokens and one to the expression tokens, each with projections of
    its own; `concatenated`: one cross-attention to both; `text`: a cross-attention to the identity tokens, and
    expression tokens join the text tokens. The last two are for comparison; such models are not exported."""
    expression_space: Literal["units", "encoder"] = "units"
    """Space of expression vectors: `units`, the channels of `expressions.action_units`; `encoder`, the output of
    `model.expression_encoder`, where the vector of a word is a mean over training images."""
    expression_width: int = 40
    """Numbers in one expression vector (40: action units, gaze and head of `expressions.action_units`)."""
    expression_tokens: int = 8
    """Expression tokens per image."""
    identity_layers: int = 2
    """Layers of the identity projector's transformer or resampler."""
    identity_tokens: int = 0
    """Number of identity tokens that a resampler makes from all references of a person; 0 keeps one token for every
    patch of every reference."""
    identity_embedding: int = 0
    """Width of the face embedding of `model.identity_encoder`, which becomes one more token of each reference; 0 for
    none."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "conditioning.", LARGEST_SIZE)
        for name in ("expression_width", "expression_tokens"):
            require(getattr(self, name) >= 1, f"conditioning.{name}", getattr(self, name), "must be at least 1")
        for name in ("identity_layers", "identity_tokens", "identity_embedding"):
            require(getattr(self, name) >= 0, f"conditioning.{name}", getattr(self, name), "must be at least 0")
        require(
            not self.identity_tokens or self.identity_layers >= 1,
            "conditioning.identity_layers",
            self.identity_layers,
            "must be at least 1 with identity_tokens",
        )


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: low-rank additions to kernels of the denoiser (Hu et al. 2021, arXiv 2106.09685); see `models.lora`."""

    rank: int = 0
    """Rank r of the additions; 0 for none."""
    alpha: float = 16.0
    """The additions are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("mmdit.segments.*qkv.*.kernel", "mmdit.segments.*out.kernel")
    """Name patterns of the kernels with an addition; `*` matches anything. These kernels are frozen."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "lora.", LARGEST_SIZE)
        require(self.rank >= 0, "lora.rank", self.rank, "must be at least 0")
        require(self.alpha > 0, "lora.alpha", self.alpha, "must be positive")
        require(not self.rank or bool(self.targets), "lora.targets", self.targets, "must not be empty")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the networks of one model."""

    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    """The denoiser."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The image autoencoder; frozen while the denoiser trains."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Identity and expression tokens."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank additions, trained in place of whole kernels."""
    prediction: Literal["velocity", "x0"] = "velocity"
    """Output of the denoiser: `velocity` (SD3) or `x0`, the clean latents, from which the velocity follows."""
    autoencoder_weights: FileName = "package:autoencoder_tiny"
    """Weights of the autoencoder: `package:NAME`, a weight file, a diffusers folder, or a one-file SD3 checkpoint
    (`.safetensors` with keys `first_stage_model.*`)."""
    transformer_weights: FileName = ""
    """Initial weights of the denoiser's training: a diffusers folder, or a one-file SD3 checkpoint (`.safetensors` with
    keys `model.diffusion_model.*`); empty to train from scratch."""
    autoencoder_variant: str = field(default="", metadata=ADDED_LATER)
    """Variant of the files in the diffusers folder autoencoder_weights, such as fp16; empty for files without one."""
    transformer_variant: str = field(default="", metadata=ADDED_LATER)
    """Variant of the files in the diffusers folder transformer_weights, such as fp16; empty for files without one."""
    identity_encoder: FileName = ""
    """Face encoder whose embeddings of the references condition the denoiser: `package:NAME` or a weight file; empty
    for none."""
    expression_encoder: FileName = ""
    """Face encoder that reads expressions from images: `package:NAME`, a weight file, or the .json of an ONNX encoder;
    empty for none."""

    def __post_init__(self) -> None:
        conditioning = self.conditioning
        require(
            bool(self.identity_encoder) == bool(conditioning.identity_embedding),
            "conditioning.identity_embedding",
            conditioning.identity_embedding,
            f"must be the encoder's width with model.identity_encoder {self.identity_encoder!r}, and 0 without one",
        )
        require(
            bool(self.expression_encoder) or conditioning.expression_space == "units",
            "conditioning.expression_space",
            conditioning.expression_space,
            "needs model.expression_encoder",
        )
        require(
            self.mmdit.in_channels == self.autoencoder.latent_channels,
            "mmdit.in_channels",
            self.mmdit.in_channels,
            f"must equal autoencoder.latent_channels {self.autoencoder.latent_channels}",
        )
        require(
            not self.transformer_weights or self.prediction == "velocity",
            "prediction",
            self.prediction,
            "must be velocity, the output that transformer_weights were trained for",
        )
        require(
            bool(self.transformer_weights) or not self.transformer_variant,
            "model.transformer_variant",
            self.transformer_variant,
            "needs model.transformer_weights",
        )
        require(
            not self.transformer_weights or conditioning.attention == "decoupled",
            "conditioning.attention",
            conditioning.attention,
            "must be decoupled with transformer_weights: another one changes what the released model computes",
        )

    @property
    def image_size(self) -> int:
        """Side of the model's images, in pixels."""
        return self.mmdit.sample_size * self.autoencoder.downsample
