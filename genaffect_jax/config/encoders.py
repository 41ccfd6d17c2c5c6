"""Configuration of the face encoders and of their training runs."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genaffect_jax.config.as_json import ADDED_LATER
from genaffect_jax.config.file_name import FileName
from genaffect_jax.config.numbers import LARGEST_SIZE, require_usable_numbers
from genaffect_jax.config.runs import DataConfig, MeshConfig, TrainConfig
from genaffect_jax.errors import require

Crop = tuple[float, float, float]
"""A square part of a square image: left edge, top edge and side, as shares of the image's side."""
WHOLE: Crop = (0.0, 0.0, 1.0)
ARCFACE_CROP: Crop = (0.125, 0.125, 0.75)
"""Place of ArcFace's 112-px square in an aligned image (`data.photos.alignment`)."""


def require_crop(crop: Crop, name: str) -> None:
    """Raises ConfigError unless the crop lies inside the image."""
    numbers = len(crop) == 3 and all(map(math.isfinite, crop))
    inside = numbers and min(crop[:2]) >= 0.0 and crop[2] > 0.0 and max(crop[:2]) + crop[2] <= 1.0 + 1e-9
    require(inside, name, crop, "must be left, top and side as shares of the image's side, inside the image")


def describe_crop(crop: Crop) -> str:
    """The part of an image that an encoder reads, in words."""
    left, top, side = crop
    return "the whole image" if crop == WHOLE else f"the square at {left:g}, {top:g} of side {side:g} of the image"


@dataclass(frozen=True)
class FaceEncoderConfig:
    """A network from an image of a face to one vector."""

    target: Literal["identity", "expression"] = "identity"
    """`identity`: a unit vector, close for images of one person; `expression`: an expression vector."""
    architecture: Literal["residual", "transformer", "iresnet"] = "residual"
    """`residual`: convolutions at falling resolutions; `transformer`: attention between patches of one resolution;
    `iresnet`: ArcFace's network (`models.face_encoders.iresnet`), for converted weights."""
    image_size: int = 112
    """Side of the network's images, in pixels; images of other sizes are resized."""
    widths: tuple[int, ...] = (24, 48, 96, 160)
    """Channels at each resolution; the first is half of image_size, each further one half of the one before
    (`iresnet`: the stem, at image_size, has the first number of channels too)."""
    depths: tuple[int, ...] = (1, 2, 2, 2)
    """Residual blocks at each resolution (`transformer`: only the last resolution has blocks; `iresnet`: the first
    block of each resolution halves it)."""
    heads: int = 4
    """Attention heads (`transformer`)."""
    norm_num_groups: int = 8
    """Groups of the group normalisation, a divisor of every entry of widths (`iresnet` has none)."""
    neck: int = 32
    """Channels of every pixel of the last resolution at the head's input (`residual`)."""
    hidden: int = 256
    """Width of the head's hidden layer (`iresnet` has a linear head)."""
    width: int = 256
    """Width of the output vector."""
    crop: Crop = field(default=WHOLE, metadata=ADDED_LATER)
    """Part of the image that the network reads: left edge, top edge and side, as shares of the image's side."""

    @property
    def downsample(self) -> int:
        """Pixels of the image per pixel of the last resolution, along one side."""
        return 2 ** len(self.widths)

    def __post_init__(self) -> None:
        require_usable_numbers(self, "encoder.", LARGEST_SIZE)
        require(bool(self.widths), "encoder.widths", self.widths, "must not be empty")
        require(
            len(self.depths) == len(self.widths),
            "encoder.depths",
            self.depths,
            f"must have one entry per entry of widths {self.widths}",
        )
        for name in ("image_size", "heads", "norm_num_groups", "neck", "hidden", "width"):
            require(getattr(self, name) >= 1, f"encoder.{name}", getattr(self, name), "must be at least 1")
        groups = 1 if self.architecture == "iresnet" else self.norm_num_groups
        for c in self.widths:
            require(
                c >= 1 and c % groups == 0,
                "encoder.widths",
                c,
                f"must be a positive multiple of norm_num_groups {self.norm_num_groups}",
            )
        require(min(self.depths) >= 0, "encoder.depths", self.depths, "must be at least 0")
        require_crop(self.crop, "encoder.crop")
        if self.architecture == "iresnet":
            require(min(self.depths) >= 1, "encoder.depths", self.depths, "an iresnet has a block at each resolution")
            require(self.target == "identity", "encoder.target", self.target, "an iresnet gives identity vectors")
        require(
            self.image_size % self.downsample == 0,
            "encoder.image_size",
            self.image_size,
            f"must be a multiple of 2 ** len(widths) = {self.downsample}",
        )
        if self.architecture == "transformer":
            require(
                self.widths[-1] % self.heads == 0,
                "encoder.heads",
                self.heads,
                f"must divide the last of widths {self.widths}",
            )
            require(
                not any(self.depths[:-1]),
                "encoder.depths",
                self.depths,
                "a transformer has blocks at the last resolution only; the others must be 0",
            )

    @classmethod
    def identity_avatar(cls) -> FaceEncoderConfig:
        """The identity encoder for conditioning."""
        return cls(target="identity", width=256)

    @classmethod
    def expression_avatar(cls) -> FaceEncoderConfig:
        """The expression encoder for conditioning; its images are larger, as lids and gaze are small."""
        return cls(target="expression", image_size=128, width=40)

    @classmethod
    def identity_evaluator(cls) -> FaceEncoderConfig:
        """The identity encoder for evaluation: smaller images, fewer and wider stages, a coarser neck."""
        return cls(
            target="identity",
            image_size=96,
            widths=(32, 80, 192),
            depths=(1, 2, 3),
            norm_num_groups=16,
            neck=12,
            hidden=320,
            width=192,
        )

    @classmethod
    def expression_evaluator(cls) -> FaceEncoderConfig:
        """The expression encoder for evaluation."""
        return cls(
            target="expression",
            architecture="transformer",
            image_size=128,
            widths=(32, 64, 128),
            depths=(0, 0, 6),
            width=40,
        )

    @classmethod
    def arcface_r50(cls) -> FaceEncoderConfig:
        """ArcFace's IResNet-50, which reads the middle of an aligned photo (Deng et al. 2019, section 3.1)."""
        return cls(
            target="identity",
            architecture="iresnet",
            image_size=112,
            widths=(64, 128, 256, 512),
            depths=(3, 4, 14, 3),
            width=512,
            crop=ARCFACE_CROP,
        )

    @classmethod
    def arcface_r100(cls) -> FaceEncoderConfig:
        """ArcFace's IResNet-100."""
        return dataclasses.replace(cls.arcface_r50(), depths=(3, 13, 30, 3))


@dataclass(frozen=True)
class DegradeConfig:
    """Degradation of training images that keeps person and expression (`training.face_encoder.degrade`)."""

    shift: float = 0.06
    """Largest shift along each axis, as a share of the side."""
    zoom: float = 0.1
    """Largest change of scale: between 1 - zoom and 1 + zoom."""
    gain: float = 0.12
    """Largest change of contrast (of 1) and of brightness (of half the range)."""
    tint: float = 0.04
    """Largest change of one channel relative to the others."""
    blur: float = 1.2
    """Largest standard deviation of the Gaussian blur, in pixels; half of the images stay sharp."""
    noise: float = 0.03
    """Largest standard deviation of the noise, for values from 0 to 1; half of the images stay clean."""
    quantise: float = 0.15
    """Coarsest quantisation step of block-transform (JPEG-like) coefficients, for values from 0 to 1; in 3 of 10
    images."""
    autoencoder: FileName | None = "package:autoencoder_tiny"
    """Weights of an autoencoder that some images pass through; None for none."""
    autoencoder_share: float = 0.25
    """Share of the images that pass through the autoencoder."""
    latent_noise: float = 0.3
    """Largest standard deviation of the noise added to the latents, which have a standard deviation of about 1."""

    def __post_init__(self) -> None:
        require_usable_numbers(self, "degrade.")
        for name in ("shift", "zoom", "gain", "tint", "autoencoder_share"):
            require(0.0 <= getattr(self, name) < 1.0, f"degrade.{name}", getattr(self, name), "must lie in [0, 1)")
        for name in ("blur", "noise", "quantise", "latent_noise"):
            require(getattr(self, name) >= 0.0, f"degrade.{name}", getattr(self, name), "must be at least 0")


@dataclass(frozen=True)
class EncoderRun:
    """One training run of a face encoder."""

    name: str = "identity_avatar"
    """Name of the encoder and, with `.safetensors`, of its weight file."""
    licence: str = "Apache-2.0"
    """Licence of the trained weights, written into the weight file."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    stored: Path | None = None
    """Folder of the rendered avatars, which several runs may share; the run folder if None (source `procedural`)."""
    split_seed: int = 0
    """Seed of the choice of held-out people; with the `train.seed` of a denoiser, the same people are held out."""
    encoder: FaceEncoderConfig = field(default_factory=FaceEncoderConfig)
    """The network."""
    margin: float = 0.3
    """Additive angular margin, in radians (target `identity`)."""
    scale: float = 32.0
    """Scale of the cosines in the softmax (target `identity`)."""
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """Changes of the training images."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimization, logging, checkpoints."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices."""

    def __post_init__(self) -> None:
        require_usable_numbers(self)
        require(
            re.fullmatch(r"[a-z0-9_]+", self.name) is not None,
            "name",
            repr(self.name),
            "must consist of lower-case letters, digits and underscores",
        )
        require(bool(self.licence.strip()), "licence", repr(self.licence), "must not be empty")
        require(self.split_seed >= 0, "split_seed", self.split_seed, "must be at least 0")
        require(
            self.train.gradient_accumulation_steps == 1,
            "train.gradient_accumulation_steps",
            self.train.gradient_accumulation_steps,
            "must be 1; only the denoiser's training accumulates gradients",
        )
        require(0.0 <= self.margin < 1.5, "margin", self.margin, "must lie in [0, 1.5) radians")
        require(self.scale > 0.0, "scale", self.scale, "must be positive")
        require(
            self.data.image_size % 8 == 0,
            "data.image_size",
            self.data.image_size,
            "must be a multiple of 8, the block size of the degradation",
        )
