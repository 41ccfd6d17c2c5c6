"""What Gen-AFFECT adds to an SD3 transformer, as a component folder: projectors and condition branches.

The class that reads the folder in PyTorch is `GenAffectAdapter` of `interop.torch.genaffect_modeling`. A denoiser's
parameters are divided into those of the transformer, without condition branches, and those of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax

from genaffect_jax.config import MMDiTConfig, ModelConfig
from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.folders import CONFIG_FILE, component_folder, new_component, read_config
from genaffect_jax.interop.diffusers.parameters import ParameterTensors, read_parameters
from genaffect_jax.interop.diffusers.rules import Rule, linear, patch_linear
from genaffect_jax.interop.diffusers.tensor_files import open_tensors, write_tensors
from genaffect_jax.interop.diffusers.weights import MAX_SHARD_BYTES
from genaffect_jax.io.weight_file import WeightDType
from genaffect_jax.models.build import build_networks
from genaffect_jax.models.functional import Parameters
from genaffect_jax.models.parameter_names import ADAPTERS, BRANCHES, MMDIT

CLASS_NAME = "GenAffectAdapter"
FOLDER = "adapter"
RUN = "run"
"""Entry of `config.json` with the run that trained the model, from which a run folder is made again."""

# A projector's layer is one class in PyTorch; here it is a resampler's, or one with the attention in a part of its own.
_LAYER_LINEAR = {"query": "to_q", "key": "to_k", "value": "to_v"}
_LAYER_NORMS = {"query_norm": "norm_q", "key_norm": "norm_k"}


def divide(parameters: Mapping[str, jax.Array]) -> tuple[Parameters, Parameters]:
    """Parameters of the transformer and of the adapter, from those of a denoiser; names lose the prefix `mmdit.`."""
    transformer: Parameters = {}
    adapter: Parameters = {}
    for name, value in parameters.items():
        part = adapter if any(fnmatchcase(name, pattern) for pattern in ADAPTERS) else transformer
        part[name.removeprefix(MMDIT)] = value
    return transformer, adapter


def unite(transformer: Mapping[str, jax.Array], adapter: Mapping[str, jax.Array]) -> Parameters:
    """The inverse of `divide`."""
    projectors = {name for name in adapter if name.startswith(tuple(f"{branch}_projector." for branch in BRANCHES))}
    return {
        **{f"{MMDIT}{name}": value for name, value in transformer.items()},
        **{name if name in projectors else f"{MMDIT}{name}": value for name, value in adapter.items()},
    }


def adapter_values(config: ModelConfig) -> dict[str, Any]:
    """The arguments of the class in PyTorch."""
    network, conditioning = config.mmdit, config.conditioning
    return {
        "width": network.width,
        "heads": network.num_attention_heads,
        "num_layers": network.num_layers,
        "patch_size": network.patch_size,
        "in_channels": network.in_channels,
        "qk_norm": network.qk_norm == "rms_norm",
        "expression_width": conditioning.expression_width,
        "expression_tokens": conditioning.expression_tokens,
        "identity_layers": conditioning.identity_layers,
        "identity_tokens": conditioning.identity_tokens,
        "face_width": conditioning.identity_embedding,
        "prediction": config.prediction,
        "register_tokens": network.register_tokens,
    }


def adapter_rules(network: MMDiTConfig, resampler: bool) -> tuple[Rule, ...]:
    """The conversion table; `resampler` says which of the two kinds of layers the identity projector has."""
    rules = [
        Rule("identity_projector.embed.kernel", "identity_projector.proj.weight", patch_linear(network.patch_size)),
        Rule("identity_projector.embed.bias", "identity_projector.proj.bias"),
        *linear("identity_projector.face", "identity_projector.face"),
        Rule("identity_projector.queries", "identity_projector.queries"),
        Rule("identity_projector.null", "identity_projector.null"),
        *linear("expression_projector.mlp.up", "expression_projector.linear_1"),
        *linear("expression_projector.mlp.down", "expression_projector.linear_2"),
        Rule("expression_projector.base", "expression_projector.base"),
        Rule("expression_projector.null", "expression_projector.null"),
    ]
    ours = theirs = "identity_projector.layers.{i}"
    attention, qkv = (ours, ours) if resampler else (f"{ours}.attention", f"{ours}.attention.qkv")
    for name, key in _LAYER_LINEAR.items():
        rules += linear(f"{qkv}.{name}", f"{theirs}.attn.{key}")
    for name, key in _LAYER_NORMS.items():
        rules.append(Rule(f"{qkv}.{name}.scale", f"{theirs}.attn.{key}.weight"))
    rules += linear(f"{attention}.out", f"{theirs}.attn.to_out.0")
    rules += linear(f"{ours}.mlp.up", f"{theirs}.ff.net.0.proj")
    rules += linear(f"{ours}.mlp.down", f"{theirs}.ff.net.2")
    for branch in BRANCHES:
        block = f"blocks.{{i}}.{branch}"
        # The projections of a branch have no bias.
        rules += [linear(f"{block}.key", f"{block}.to_k")[0], linear(f"{block}.value", f"{block}.to_v")[0]]
        rules.append(Rule(f"{block}.key_norm.scale", f"{block}.norm_k.weight"))
    return tuple(rules)


def write_adapter(
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    folder: Path,
    *,
    run: Mapping[str, Any],
    dtype: WeightDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the adapter's part of `divide` as a component folder, atomically.

    Args:
        config: the model, without low-rank additions.
        parameters: the adapter's parameters.
        folder: the component's folder.
        run: what `read_run` gives back.
        dtype: stored type; None for each parameter's own.
        max_shard_bytes: largest file, in bytes.
        metadata: more entries of the files' headers.

    Raises:
        WeightsError: see `parameters.ParameterTensors`; or `folder` holds other files.
    """
    values = {**adapter_values(config), RUN: dict(run)}
    tensors = ParameterTensors(CLASS_NAME, *_table(config), parameters, dtype, folder)
    with new_component(folder, CLASS_NAME, values) as temporary:
        write_tensors(temporary, tensors, max_shard_bytes, metadata)


def read_run(folder: Path) -> dict[str, Any]:
    """The entry that says which run trained the model.

    Args:
        folder: a pipeline's folder, or the adapter's own.

    Raises:
        WeightsError: the folder holds no adapter, or one without the entry.
    """
    own = component_folder(folder, FOLDER)
    run = read_config(own, CLASS_NAME).get(RUN)
    if not isinstance(run, dict):
        raise WeightsError(f"{own / CONFIG_FILE}: has no object {RUN!r}, which says what run trained the model")
    return run


def read_adapter(
    folder: Path, config: ModelConfig, *, dtype: WeightDType | None = None, variant: str | None = None
) -> Parameters:
    """The adapter's parameters.

    Args:
        folder: a pipeline's folder, or the adapter's own.
        config: the model, without low-rank additions.
        dtype: type of the parameters; None for each parameter's stored type.
        variant: variant of the files (`fp16`).

    Raises:
        WeightsError: a file is missing or damaged, or the adapter is of another model (differences are named).
    """
    own = component_folder(folder, FOLDER)
    found = read_config(own, CLASS_NAME)
    differences = [
        f"{name} is {found.get(name)!r}, must be {value!r}"
        for name, value in adapter_values(config).items()
        if found.get(name) != value
    ]
    if differences:
        raise WeightsError(f"{own / CONFIG_FILE}: of another model: {'; '.join(differences)}")
    with open_tensors(own, variant) as stored:
        return read_parameters(*_table(config), stored, own, dtype)


def _table(config: ModelConfig) -> tuple[tuple[Rule, ...], dict[str, tuple[int, ...]]]:
    """The conversion table, and the shapes of the adapter's parameters."""
    shapes = divide(build_networks(config)[0].shapes)[1]  # type: ignore[arg-type]  # abstract arrays
    rules = adapter_rules(config.mmdit, bool(config.conditioning.identity_tokens))
    return rules, {name: tuple(s.shape) for name, s in shapes.items()}
