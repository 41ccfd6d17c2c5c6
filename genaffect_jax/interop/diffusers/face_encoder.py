"""Face encoders written to and read from folders of the diffusers component `interop.torch.genaffect_faces`.

Names in such a folder are those of diffusers' own modules where it uses them (`conv1.weight`, `attn.to_q.weight`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from genaffect_jax.config import from_json
from genaffect_jax.config.encoders import FaceEncoderConfig
from genaffect_jax.errors import require
from genaffect_jax.interop.diffusers.components import Component
from genaffect_jax.interop.diffusers.configs import with_defaults
from genaffect_jax.interop.diffusers.rules import (
    DEPTHWISE,
    LINEAR,
    Rule,
    Transform,
    conv,
    flattened_linear,
    linear,
    norm,
)
from genaffect_jax.interop.diffusers.weights import read_component, write_component
from genaffect_jax.io.weight_file import WeightDType, read_metadata, resolve_weights, stored_dtype
from genaffect_jax.models.face_encoders.encoder import load_encoder
from genaffect_jax.models.face_encoders.networks import FaceEncoder
from genaffect_jax.models.functional import Parameters

_NAMED = ("name", "licence")  # entries of a weight file's header that are fields of the component's configuration
_CONFIG = "config"  # the header entry that the other fields hold
_DEFAULTS = {**dataclasses.asdict(FaceEncoderConfig()), "name": "", "licence": "", "metadata": None}


@dataclass(frozen=True)
class FaceEncoderHeader:
    """The header of a weight file: configuration and text entries."""

    encoder: FaceEncoderConfig
    """The network."""
    metadata: tuple[tuple[str, str], ...]
    """The other entries, sorted; `name` and `licence` are among them."""


def write_face_encoder(source: str, folder: Path, *, dtype: WeightDType | None = None) -> None:
    """Writes a face encoder as a folder for `GenAffectFaceEncoder.from_pretrained`, atomically.

    Args:
        source: `package:NAME` or a weight file; it holds header entries that a loaded encoder does not keep.
        folder: the component's folder; an earlier one of this class is replaced.
        dtype: stored type, rounded to nearest; None for the type of the weight file.

    Raises:
        WeightsError: as `models.face_encoders.encoder.load_encoder`, a number is not finite in `dtype`, or `folder`
            holds other files.
    """
    encoder = load_encoder(source)
    path = resolve_weights(source)
    texts = {key: text for key, text in read_metadata(path).items() if key != _CONFIG}
    header = FaceEncoderHeader(encoder.config, tuple(sorted(texts.items())))
    write_component(FACE_ENCODER, header, encoder.parameters, folder, dtype or stored_dtype(path))


def read_face_encoder(
    folder: Path, *, dtype: WeightDType | None = None, variant: str | None = None
) -> tuple[FaceEncoderConfig, Parameters, dict[str, str]]:
    """Configuration, flat parameters and metadata of a face encoder, as `io.weight_file.save_weights` takes them.

    Args:
        folder: the component's own folder.
        dtype: type of the parameters, rounded to nearest; None for each parameter's stored type.
        variant: variant of the files (`fp16`).

    Raises:
        WeightsError: a file is missing or damaged, an entry of `config.json` is unknown or not allowed, or keys or
            shapes are not exactly those of the network (some are named).
    """
    header, parameters = read_component(FACE_ENCODER, folder, dtype, variant=variant)
    return header.encoder, parameters, dict(header.metadata)


def face_encoder_header(values: Mapping[str, Any]) -> FaceEncoderHeader:
    """The header from the entries of a GenAffectFaceEncoder's `config.json`.

    Raises:
        ConfigError: an entry is unknown or not allowed, or name or licence is empty.
    """
    fields = with_defaults(values, _DEFAULTS)
    others = fields.pop("metadata")
    others = {} if others is None else others
    texts = {key: fields.pop(key) for key in _NAMED}
    for key, text in texts.items():
        require(isinstance(text, str) and bool(text.strip()), key, repr(text), "must be a text that is not empty")
    good = isinstance(others, Mapping) and all(isinstance(text, str) for text in others.values())
    reserved = {*_NAMED, _CONFIG}
    require(good and not reserved & others.keys(), "metadata", others, f"must be texts, without {sorted(reserved)}")
    encoder = from_json(FaceEncoderConfig, json.dumps(fields))
    return FaceEncoderHeader(encoder, tuple(sorted({**texts, **others}.items())))


def face_encoder_values(header: FaceEncoderHeader) -> dict[str, Any]:
    """The inverse of `face_encoder_header`."""
    others = dict(header.metadata)
    texts = {key: others.pop(key) for key in _NAMED}
    return {**dataclasses.asdict(header.encoder), **texts, "metadata": others}


def face_encoder_rules(config: FaceEncoderConfig) -> tuple[Rule, ...]:
    """The table of `models.face_encoders.networks.FaceEncoder`, of one architecture."""
    flattened = flattened_linear(config.image_size // config.downsample)
    if config.architecture == "residual":
        return (*_residual_rules(), *_mlp("head", "head", flattened))
    if config.architecture == "transformer":
        return (*_transformer_rules(len(config.widths)), *_mlp("head", "head", LINEAR))
    return (*_iresnet_rules(), *linear("head", "head", flattened))


def _residual_rules() -> list[Rule]:
    rules = [*conv("trunk.stem", "stem.0"), *norm("trunk.norm", "tail.0"), *conv("trunk.neck", "tail.2")]
    ours, theirs = "trunk.layers.{i}", "blocks.{i}"
    for part in ("conv1", "conv2", "conv_shortcut", "conv"):  # `conv` is the downsampling one
        rules += conv(f"{ours}.{part}", f"{theirs}.{part}")
    for part in ("norm1", "norm2"):
        rules += norm(f"{ours}.{part}", f"{theirs}.{part}")
    return [*rules, *conv(ours, theirs)]  # a resolution without blocks


def _transformer_rules(levels: int) -> list[Rule]:
    rules = [Rule("trunk.position", "pos_embed"), Rule("trunk.norm.scale", "tail.0.weight")]
    for i in range(levels):  # convolution, normalisation, SiLU
        rules += conv(f"trunk.stem.{i}", f"stem.{3 * i}")
        rules += norm(f"trunk.norms.{i}", f"stem.{3 * i + 1}")
    ours, theirs = "trunk.blocks.{i}", "blocks.{i}"
    for our_part, their_part in {"norm_attention": "norm1", "norm_mlp": "norm3"}.items():
        rules.append(Rule(f"{ours}.{our_part}.scale", f"{theirs}.{their_part}.weight"))
    for our_part, their_part in {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}.items():
        rules += linear(f"{ours}.{our_part}", f"{theirs}.attn1.{their_part}")
    return [*rules, *_mlp(f"{ours}.mlp", f"{theirs}.ff", LINEAR)]


def _iresnet_rules() -> list[Rule]:
    rules = [*conv("trunk.stem", "stem.0"), *norm("trunk.norm", "tail.0", DEPTHWISE)]
    rules.append(Rule("trunk.prelu.slope", "stem.1.weight"))
    ours, theirs = "trunk.blocks.{i}", "blocks.{i}"
    rules += norm(f"{ours}.norm", f"{theirs}.norm", DEPTHWISE)
    rules.append(Rule(f"{ours}.prelu.slope", f"{theirs}.prelu.weight"))
    for our_part, their_part in {"conv1": "conv1", "conv2": "conv2", "shortcut": "conv_shortcut"}.items():
        rules += conv(f"{ours}.{our_part}", f"{theirs}.{their_part}")
    return rules


def _mlp(ours: str, theirs: str, first: Transform) -> tuple[Rule, ...]:
    return (*linear(f"{ours}.up", f"{theirs}.net.0.proj", first), *linear(f"{ours}.down", f"{theirs}.net.2"))


FACE_ENCODER = Component(
    "GenAffectFaceEncoder",
    "",
    face_encoder_header,
    face_encoder_values,
    lambda header: face_encoder_rules(header.encoder),
    lambda header, dtype, rngs: FaceEncoder(header.encoder, dtype=jnp.dtype(dtype), rngs=rngs),
)
