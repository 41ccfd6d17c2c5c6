"""Inputs and outputs of the three ONNX graphs of a model: names, shapes and meaning.

`conditions` runs once per set, `denoiser` once per step, `decoder` once at the end. Everything that stays constant
while a set is denoised is an output of the first and an input of the second.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from genaffect_jax.config import ModelConfig

AXES = {
    "R": "reference images of one person, at least 1",
    "E": "images of a group",
    "G": "groups: the guidance branches of one person's set, or several people side by side",
    "B": "images of all groups, B = G * E; image b belongs to group b // E",
    "K": "identity tokens",
    "T": "text tokens",
}
"""Axes whose lengths are free."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph."""

    name: str
    """Name in the graph."""
    shape: tuple[int | str, ...]
    """Lengths of the axes; names of `AXES` where they are free."""
    meaning: str
    """What it holds."""
    dtype: Literal["float32", "bool"] = "float32"
    """Type."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one graph, in order."""

    inputs: tuple[Tensor, ...]
    """What the graph takes."""
    outputs: tuple[Tensor, ...]
    """What it gives."""

    def as_json(self) -> dict[str, Any]:
        """As the values of a JSON file."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def signatures(config: ModelConfig) -> dict[str, Signature]:
    """The signatures of `conditions`, `denoiser` and `decoder`."""
    network, conditioning = config.mmdit, config.conditioning
    layers, heads, head_width = network.num_layers, network.num_attention_heads, network.attention_head_dim
    side, channels, pixels = network.sample_size, network.in_channels, config.image_size
    vectors, seen = conditioning.expression_width, conditioning.expression_tokens
    attended = []
    for branch, images, tokens in (("identity", "G", conditioning.identity_tokens or "K"), ("expression", "B", seen)):
        for part in ("keys", "values"):
            meaning = f"{part} of the {branch} tokens in every block; passed on as they are"
            attended.append(Tensor(f"{branch}_{part}", (layers, images, heads, tokens, head_width), meaning))
    latents = Tensor("latents", ("B", channels, side, side), "noisy latents, unit Gaussian noise at sigma 1")
    scale = "weight of the {} branch in every block; 1 as trained"
    prompts = (
        (
            Tensor("text", ("B", "T", network.joint_attention_dim), "text embedding of each image's prompt"),
            Tensor("pooled", ("B", network.pooled_projection_dim), "pooled text embedding of each image's prompt"),
        )
        if network.reads_prompts
        else ()
    )
    return {
        "conditions": Signature(
            (
                Tensor("references", ("R", 3, pixels, pixels), "RGB images of one person, byte / 127.5 - 1"),
                Tensor("vectors", ("E", vectors), "expression vector of each image"),
                Tensor("drop_identity", ("G",), "true: the group has the learned null identity", "bool"),
                Tensor("drop_expression", ("G",), "true: the group has the learned null expression", "bool"),
            ),
            tuple(attended),
        ),
        "denoiser": Signature(
            (
                latents,
                Tensor("sigma", ("B",), "noise level of each image, 1 (noise) to 0 (clean); timestep / 1000"),
                *attended,
                Tensor("identity_scale", (layers,), scale.format("identity")),
                Tensor("expression_scale", (layers,), scale.format("expression")),
                *prompts,
            ),
            (Tensor("velocity", latents.shape, "derivative of the latents by sigma, noise - clean"),),
        ),
        "decoder": Signature(
            (Tensor("latents", latents.shape, "clean latents"),),
            (Tensor("images", ("B", 3, pixels, pixels), "RGB images in [-1, 1]; byte = round((x + 1) * 127.5)"),),
        ),
    }
