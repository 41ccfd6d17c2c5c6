"""The original layout of SD3 checkpoints: Stability's names of the transformer, latent diffusion's of the autoencoder.

Three things differ from diffusers beside the names: queries, keys and values of an attention are the rows of one
tensor; the final layer and the text modulation of the last block give shift before scale (diffusers: scale before
shift); the autoencoder's attention has 1x1 convolutions in place of linear layers. The facts are those of diffusers'
`loaders/single_file_utils.py`, against which the tests compare.

The tables name modules of both layouts. Names of this package stand in `key_tables` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from genaffect_jax.config import AutoencoderConfig, MMDiTConfig

Shape = tuple[int, ...]
Config = TypeVar("Config", bound=Hashable)


@dataclass(frozen=True)
class Original:
    """A tensor of the original layout (or a module: names without `.weight`), and what holds the same in diffusers."""

    key: str
    """Name in the original layout, without the prefix of its network."""
    parts: tuple[str, ...]
    """Names in diffusers, in the order of their rows in the original tensor. All have equally many rows."""
    swapped: bool = False
    """Whether the two halves of the rows change places."""
    pointwise: bool = False
    """Whether the original is a 1x1 convolution, [out, in, 1, 1], and diffusers has a linear layer, [out, in]."""

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Shape in the original layout, given the shapes of the parts in diffusers."""
        rows, *rest = shapes[self.parts[0]]
        return (len(self.parts) * rows, *rest, *((1, 1) if self.pointwise and rest else ()))

    def rows(self, part: str, count: int) -> slice:
        """The rows of a part among the `count` rows of the original tensor."""
        size = count // len(self.parts)
        start = size * self.parts.index(part)
        return slice(start, start + size)

    def to_diffusers(self, rows: np.ndarray) -> np.ndarray:
        """A part, from its rows in the original tensor."""
        if self.pointwise and rows.ndim == 4:
            rows = rows[:, :, 0, 0]
        return _swap_halves(rows) if self.swapped else rows

    def to_original(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The original tensor, from its parts."""
        tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.pointwise and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        return _swap_halves(tensor) if self.swapped else tensor


@dataclass(frozen=True)
class Layout(Generic[Config]):
    """The original layout of one kind of network."""

    prefix: str
    """Prefix of the network's keys in a checkpoint that holds several networks."""
    modules: Callable[[Config], Iterator[Original]]
    """All modules that such a network may have."""

    def tensors(self, config: Config, keys: Collection[str]) -> dict[str, Original]:
        """The original tensors of a network, by their keys without prefix.

        Args:
            config: the network's configuration.
            keys: all keys of the network in diffusers.

        Raises:
            ValueError: a key of diffusers has not exactly one place in the original layout.
        """
        tensors = {}
        for module in self.modules(config):
            for suffix in ("", ".weight", ".bias"):
                parts = tuple(f"{part}{suffix}" for part in module.parts)
                if all(part in keys for part in parts):
                    key = f"{module.key}{suffix}"
                    tensors[key] = Original(key, parts, module.swapped, module.pointwise)
        placed = [part for tensor in tensors.values() for part in tensor.parts]
        if sorted(placed) != sorted(keys):
            raise ValueError(f"the original layout has no single place for {sorted(set(placed) ^ set(keys))}")
        return tensors


_TRANSFORMER_MODULES = {
    "x_embedder.proj": "pos_embed.proj",
    "pos_embed": "pos_embed.pos_embed",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
_BLOCK_MODULES = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
_BLOCK_QKV = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_RESNET_MODULES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_ATTENTION_MODULES = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _transformer_modules(config: MMDiTConfig) -> Iterator[Original]:
    for key, part in _TRANSFORMER_MODULES.items():
        yield Original(key, (part,))
    yield Original("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True)
    for i in range(config.num_layers):
        ours, theirs = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        for key, part in _BLOCK_MODULES.items():
            yield Original(f"{ours}.{key}", (f"{theirs}.{part}",))
        for key, parts in _BLOCK_QKV.items():
            yield Original(f"{ours}.{key}", tuple(f"{theirs}.{part}" for part in parts))
        modulation = f"{ours}.context_block.adaLN_modulation.1"
        yield Original(modulation, (f"{theirs}.norm1_context.linear",), swapped=i == config.num_layers - 1)


def _autoencoder_modules(config: AutoencoderConfig) -> Iterator[Original]:
    levels = len(config.block_out_channels)
    for half, blocks, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        for key, part in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            yield Original(f"{half}.{key}", (f"{half}.{part}",))
        for level in range(levels):
            # The decoder's levels count from the largest images, as the encoder's.
            ours = f"{half}.{blocks}.{level if half == 'encoder' else levels - 1 - level}"
            theirs = f"{half}.{blocks}_blocks.{level}"
            for i in range(config.layers_per_block + (half == "decoder")):
                yield from _resnet(f"{ours}.block.{i}", f"{theirs}.resnets.{i}")
            yield Original(f"{ours}.{sampler}.conv", (f"{theirs}.{sampler}rs.0.conv",))
        for i in range(2):
            yield from _resnet(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}")
        ours, theirs = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        yield Original(f"{ours}.norm", (f"{theirs}.group_norm",))
        for key, part in _ATTENTION_MODULES.items():
            yield Original(f"{ours}.{key}", (f"{theirs}.{part}",), pointwise=True)


def _resnet(ours: str, theirs: str) -> Iterator[Original]:
    for key, part in _RESNET_MODULES.items():
        yield Original(f"{ours}.{key}", (f"{theirs}.{part}",))


def _swap_halves(rows: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(rows, 2)[::-1])


TRANSFORMER_LAYOUT = Layout("model.diffusion_model.", _transformer_modules)
AUTOENCODER_LAYOUT = Layout("first_stage_model.", _autoencoder_modules)
