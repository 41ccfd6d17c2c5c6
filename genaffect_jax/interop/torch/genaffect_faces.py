"""Face encoders: from the image of a face to a unit vector of the person, or to the intensities of the expression."""

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from torch import Tensor, nn


def resampling(images: Tensor, side: int, start: float, share: float) -> Tensor:
    """Weights [side, S] that resize a part of S pixels, linearly with antialiasing; it starts at start * S."""
    step = share * images.shape[-1] / side
    centres = start * images.shape[-1] + (torch.arange(side, dtype=torch.float64) + 0.5) * step - 0.5
    weights = (1 - (centres[:, None] - torch.arange(images.shape[-1])).abs() / max(step, 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(images.device, torch.float32)


class IResNetBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.norm, self.prelu = nn.Conv2d(a, a, 1, groups=a), nn.PReLU(b)  # norm: a factor and a shift per channel
        self.conv1, self.conv2 = nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(b, b, 3, stride, 1)
        self.conv_shortcut = nn.Identity() if stride == 1 else nn.Conv2d(a, b, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_shortcut(x) + self.conv2(self.prelu(self.conv1(self.norm(x))))


def residual(c: FrozenDict) -> list[list[nn.Module]]:
    """Stem, blocks and tail; residual blocks at falling resolutions."""
    blocks, groups = [], c.norm_num_groups
    for a, b, depth in zip((c.widths[0], *c.widths), c.widths, c.depths, strict=False):  # from a to b channels
        widths = [a, *depth * [b]]
        blocks += [ResnetBlock2D(in_channels=w, out_channels=b, groups=groups, temb_channels=None) for w in widths[:-1]]
        blocks += [nn.Conv2d(a, b, 1)] if widths[-1] != b else []
        blocks += [Downsample2D(b, use_conv=True, padding=0, name="op")]
    tail = [nn.GroupNorm(groups, b, 1e-6), nn.SiLU(), nn.Conv2d(b, c.neck, 1)]
    return [[nn.Conv2d(3, c.widths[0], 3, 2, 1)], blocks[:-1], tail]


def transformer(c: FrozenDict) -> list[list[nn.Module]]:
    """A vision transformer (Dosovitskiy et al. 2021) over the pixels of a few strided convolutions."""
    stem, blocks = [], []
    for a, b in zip((3, *c.widths), c.widths, strict=False):
        stem += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(c.norm_num_groups, b, 1e-6), nn.SiLU()]
    for _ in range(c.depths[-1]):
        block = BasicTransformerBlock(b, c.heads, b // c.heads, activation_fn="gelu-approximate", attention_bias=True)
        block.norm1, block.norm3 = nn.RMSNorm(b, 1e-6), nn.RMSNorm(b, 1e-6)  # in place of its layer norms
        blocks.append(block)
    return [stem, blocks, [nn.RMSNorm(b, 1e-6)]]


def iresnet(c: FrozenDict) -> list[list[nn.Module]]:
    """ArcFace's network (Deng et al. 2019); its batch normalisations are factors and shifts or part of convolutions."""
    blocks = []
    for a, b, depth in zip((c.widths[0], *c.widths), c.widths, c.depths, strict=False):
        blocks += [IResNetBlock(a, b, 2), *(IResNetBlock(b, b, 1) for _ in range(depth - 1))]
    return [[nn.Conv2d(3, c.widths[0], 3, 1, 1), nn.PReLU(c.widths[0])], blocks, [nn.Conv2d(b, b, 1, groups=b)]]


class GenAffectFaceEncoder(ModelMixin, ConfigMixin):
    """A face encoder; `target` is identity or expression, `architecture` the name of a function above."""

    @register_to_config
    def __init__(
        self,
        target: str = "identity",
        architecture: str = "residual",
        image_size: int = 112,
        widths: tuple[int, ...] = (24, 48, 96, 160),
        depths: tuple[int, ...] = (1, 2, 2, 2),
        heads: int = 4,
        norm_num_groups: int = 8,
        neck: int = 32,
        hidden: int = 256,
        width: int = 256,
        crop: tuple[float, float, float] = (0.0, 0.0, 1.0),
        name: str = "",
        licence: str = "",
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        trunks = {"residual": residual, "transformer": transformer, "iresnet": iresnet}
        if target not in ("identity", "expression") or architecture not in trunks:
            raise ValueError(f"{target=}, {architecture=}: must be identity or expression, and one of {list(trunks)}")
        self.stem, self.blocks, self.tail = (nn.Sequential(*part) for part in trunks[architecture](self.config))
        pixels, tokens = (image_size // 2 ** len(widths)) ** 2, architecture == "transformer"
        self.pos_embed = nn.Parameter(torch.zeros(pixels, widths[-1])) if tokens else None
        features = widths[-1] if tokens else pixels * (neck if architecture == "residual" else widths[-1])
        mlp = {"inner_dim": hidden, "activation_fn": "gelu-approximate"}
        self.head = nn.Linear(features, width) if architecture == "iresnet" else FeedForward(features, width, **mlp)

    def forward(self, images: Tensor) -> Tensor:
        """Vectors [B, width], float32, of square images [B, 3, S, S] in [-1, 1]; expressions are not clipped."""
        c, (left, top, share) = self.config, self.config.crop
        rows, columns = (resampling(images, c.image_size, start, share) for start in (top, left))
        x = self.stem((rows @ images.float() @ columns.T).to(self.dtype))
        x = x if self.pos_embed is None else x.flatten(2).transpose(1, 2) + self.pos_embed
        for layer in (*self.blocks, *self.tail):
            x = layer(x, None) if isinstance(layer, ResnetBlock2D) else layer(x)  # None: no time embedding
        y = self.head(x.flatten(1) if self.pos_embed is None else x.mean(1)).float()
        return nn.functional.normalize(y, eps=1e-6) if c.target == "identity" else 0.2 * y  # a channel's spread

    def encode(self, images: Tensor) -> Tensor:
        """As `forward`, with expressions in range: [-1, 1] for the last five (gaze, head), [0, 1] for action units."""
        y = self(images)
        return y if self.config.target == "identity" else torch.cat((y[:, :-5].clamp(0, 1), y[:, -5:].clamp(-1, 1)), 1)
