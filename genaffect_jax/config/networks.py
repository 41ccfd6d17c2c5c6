"""Sizes of the networks. Field names of `MMDiTConfig` and `AutoencoderConfig` are those of the diffusers files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genaffect_jax.errors import require


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
    pooled_projection_dim: int = 0
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
    remat: Literal["none", "named", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing; all but the results of products with weights and attention kernels,
    and what cuDNN's read (`named`); attention too (`dots`); or every block whole (least memory, a third more time)."""

    @property
    def tokens_per_side(self) -> int:
        """Rows and columns of image tokens."""
        return self.sample_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Number of image tokens, L."""
        return self.tokens_per_side**2

    @property
    def reads_prompts(self) -> bool:
        """Whether text embeddings are given from outside; else register tokens stand in for them."""
        return self.register_tokens == 0

    @property
    def width(self) -> int:
        """Width D of the residual streams."""
        return self.attention_head_dim * self.num_attention_heads

    def __post_init__(self) -> None:
        for name in (
            "sample_size",
            "patch_size",
            "in_channels",
            "out_channels",
            "num_layers",
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "pos_embed_max_size",
        ):
            require(getattr(self, name) >= 1, f"mmdit.{name}", getattr(self, name), "must be at least 1")
        require(self.pooled_projection_dim >= 0, "mmdit.pooled_projection_dim", self.pooled_projection_dim, ">= 0")
        require(self.register_tokens >= 0, "mmdit.register_tokens", self.register_tokens, "must be at least 0")
        require(
            self.caption_projection_dim == self.width,
            "mmdit.caption_projection_dim",
            self.caption_projection_dim,
            f"must equal the model's width {self.width}",
        )
        require(
            self.sample_size % self.patch_size == 0,
            "mmdit.sample_size",
            self.sample_size,
            f"must be a multiple of patch_size {self.patch_size}",
        )
        require(
            self.sample_size // self.patch_size <= self.pos_embed_max_size,
            "mmdit.pos_embed_max_size",
            self.pos_embed_max_size,
            f"must hold {self.sample_size // self.patch_size} tokens a side",
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
            caption_projection_dim=1536,
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
            caption_projection_dim=1536,
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
            caption_projection_dim=2432,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
            register_tokens=0,
        )

    @classmethod
    def avatar_s(cls) -> MMDiTConfig:
        """The default avatar model, trained from nothing on one GPU: 8 blocks of width 384 on 32x32 latents, no text.

        256 px and an autoencoder of 8 make 32x32 latents; patches of 2 make 256 image tokens, so that attention is a
        tenth of the arithmetic. Width 384 with heads of 64 is DiT-S (Peebles and Xie 2023, arXiv 2212.09748, table 1);
        8 blocks instead of its 12, as here each carries a second stream and the two branches: 41 M parameters, 51 M
        with branches and token makers. The 8 registers keep the joint sequence (264) a multiple of 8, as tensor cores
        want it.
        """
        return cls(
            sample_size=32,
            num_layers=8,
            attention_head_dim=64,
            num_attention_heads=6,
            joint_attention_dim=384,
            caption_projection_dim=384,
            pooled_projection_dim=0,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            register_tokens=8,
        )

    @classmethod
    def avatar_tiny(cls) -> MMDiTConfig:
        """The smallest avatar model: 5 blocks of width 128 on 16x16 latents, made to learn on a CPU in minutes."""
        return cls(
            sample_size=16,
            num_layers=5,
            attention_head_dim=64,
            num_attention_heads=2,
            joint_attention_dim=128,
            caption_projection_dim=128,
            pooled_projection_dim=0,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            register_tokens=4,
        )


@dataclass(frozen=True)
class AutoencoderConfig:
    """An AutoencoderKL as SD3 uses it: no quantisation convolutions, latents shifted and scaled."""

    in_channels: int = 3
    """Channels of the images read."""
    out_channels: int = 3
    """Channels of the images written."""
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
        require(bool(self.block_out_channels), "autoencoder.block_out_channels", self.block_out_channels, "not empty")
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
        """The default autoencoder for avatars: 256 px images become 32 x 32 latents with 16 channels.

        Twice the channels of `avatar_tiny` and two residual blocks per resolution: 5.3 M parameters, which in bfloat16
        are 11 MB, small enough for a package. The flat colours and thin lines of drawn avatars need no more depth, and
        decoding stays cheap beside denoising. Shift and scale are measured at the end of a training and stand in its
        weight file.
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
    """What the two token makers read and how many tokens they hand to every block."""

    expression_space: Literal["units", "encoder"] = "units"
    """What an expression vector is: `units`, the channels of `expressions.action_units`; `encoder`, whatever
    `model.expression_encoder` makes of an image; words then stand for means over the training images."""
    expression_width: int = 40
    """Numbers in one expression vector (40: action units, gaze and head of `expressions.action_units`)."""
    expression_tokens: int = 8
    """Expression tokens per image."""
    identity_layers: int = 2
    """Layers of the transformer, or of the resampler, that makes identity tokens."""
    identity_tokens: int = 0
    """Identity tokens of a person, made by a resampler from however many references; 0 keeps a token for every patch
    of every reference."""
    identity_embedding: int = 0
    """Numbers in the face embedding of `model.identity_encoder`, which becomes one more token of each reference; 0
    leaves it out."""

    def __post_init__(self) -> None:
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
    """Low-rank additions to kernels of the denoiser (Hu et al. 2021, arXiv 2106.09685); see `models.lora`."""

    rank: int = 0
    """Rank r of the additions; 0 leaves them out."""
    alpha: float = 16.0
    """The additions are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("mmdit.segments.*qkv.*.kernel", "mmdit.segments.*out.kernel")
    """Patterns of the names of the kernels that get one; `*` stands for anything. Those kernels do not train."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "lora.rank", self.rank, "must be at least 0")
        require(self.alpha > 0, "lora.alpha", self.alpha, "must be positive")
        require(not self.rank or bool(self.targets), "lora.targets", self.targets, "must not be empty")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the networks of one model."""

    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    """The denoiser."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The image autoencoder; it is frozen while the denoiser trains."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Identity and expression tokens."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank additions that train in the place of whole kernels."""
    prediction: Literal["velocity", "x0"] = "velocity"
    """What the denoiser gives: the velocity (SD3), or the clean latents, from which the velocity follows."""
    autoencoder_weights: str = "package:autoencoder_tiny"
    """Where the autoencoder's weights come from: `package:NAME`, a safetensors file, or a diffusers folder."""
    transformer_weights: str = ""
    """Released weights that a training of the denoiser starts from: a diffusers folder; empty starts from nothing."""
    identity_encoder: str = ""
    """Face encoder whose embeddings of the references condition the denoiser: `package:NAME` or a weight file; empty:
    none."""
    expression_encoder: str = ""
    """Face encoder that reads expressions from images: `package:NAME`, a weight file, or the .json of an ONNX
    encoder; empty: none."""

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
            self.mmdit.in_channels == self.autoencoder.latent_channels == self.mmdit.out_channels,
            "mmdit.in_channels, out_channels",
            (self.mmdit.in_channels, self.mmdit.out_channels),
            f"must equal autoencoder.latent_channels {self.autoencoder.latent_channels}",
        )
        require(
            not self.transformer_weights or self.prediction == "velocity",
            "prediction",
            self.prediction,
            "must be velocity, which is what transformer_weights were trained to give",
        )

    @property
    def image_size(self) -> int:
        """Side of the images the model was made for, in pixels."""
        return self.mmdit.sample_size * self.autoencoder.downsample
