"""LoRA files of other programs: which factors they hold, for which modules, and with which scale.

Understood are, for SD3 transformers,

- PEFT and diffusers: modules by diffusers' names, after `transformer.`, `base_model.model.` or nothing;
  `.lora_A.weight` and `.lora_B.weight`, or the older `.lora.down.weight` and `.lora.up.weight`;
- kohya's sd-scripts: modules by the original layout's names with underscores, after `lora_unet_`; `.lora_down.weight`
  and `.lora_up.weight`.

The scale of a product is alpha / rank (Hu et al. 2021, arXiv 2106.09685, section 4.1). Alpha stands in a tensor
`<module>.alpha`, in the header's `lora_adapter_metadata` (diffusers), or in an `adapter_config.json` beside the file
(PEFT, for keys that begin with `base_model.model.`). Without any it is the rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genaffect_jax.errors import WeightsError
from genaffect_jax.interop.diffusers.tensor_files import StoredTensors, open_file, read_json

UNDERSTOOD = (
    "understood are lora_A and lora_B, lora.down and lora.up, or lora_down and lora_up of the transformer's layers, "
    "and their alpha"
)
METADATA = "lora_adapter_metadata"
"""Entry of the header in which diffusers keeps PEFT's configuration, as JSON."""
KOHYA = "lora_unet_"
PEFT = "base_model.model."
TRANSFORMER = "transformer."
_DOWN, _UP, _ALPHA = "down", "up", "alpha"
_ROLES = {
    "lora_A.weight": _DOWN,
    "lora.down.weight": _DOWN,
    "lora_down.weight": _DOWN,
    "lora_B.weight": _UP,
    "lora.up.weight": _UP,
    "lora_up.weight": _UP,
    "alpha": _ALPHA,
}
_KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _ROLES))})")
_TEXT = ("lora_te", "text_encoder")
_OTHERS = {
    "a DoRA": ("lora_magnitude_vector", "dora_scale"),
    "a LoKr": ("lokr_",),
    "a LoHa": ("hada_",),
    "an OFT": ("oft_",),
    "a bias": (".bias", ".diff_b"),
}


@dataclass(frozen=True)
class Factors:
    """The two factors of one module: its weight gets `scale * up @ down`."""

    module: str
    """Name of the module in the file."""
    down_key: str
    """Name of the tensor `down` in the file."""
    up_key: str
    down: np.ndarray
    """[rank, ...], float32."""
    up: np.ndarray
    """[out, rank] or, for convolutions, [out, rank, 1, 1], float32."""
    scale: float
    """alpha / rank, or alpha / sqrt(rank) if the file says `use_rslora`."""


def read_factors(path: Path) -> list[Factors]:
    """All factors of a file.

    Raises:
        WeightsError: the file is missing or damaged or holds no LoRA keys; a key is not understood (the first is
            named), lacks its partner or has numbers that are not finite; ranks or alphas contradict each other.
    """
    with open_file(path) as file:
        modules = _modules(sorted(file.keys()), path)
        settings = _settings(path, file.metadata() or {}, modules)
        factors = {key for keys in modules.values() for role, key in keys.items() if role != _ALPHA}
        try:
            stored = StoredTensors(dict.fromkeys(sorted(factors), file))
        except WeightsError as e:
            raise WeightsError(f"{path}: {e}") from e
        # Alphas may have any type.
        alphas = {
            module: _number(file.get_tensor(keys[_ALPHA]), keys[_ALPHA], path)
            for module, keys in modules.items()
            if _ALPHA in keys
        }
        return [_factors(module, keys, stored, alphas.get(module), settings, path) for module, keys in modules.items()]


def config_file(path: Path) -> Path | None:
    """PEFT's configuration beside a file of PEFT; None if the file is of another kind or has none."""
    beside = path.parent / "adapter_config.json"
    with open_file(path) as file:
        is_peft = any(key.startswith(PEFT) for key in file.keys())  # noqa: SIM118 (safe_open is no mapping)
        return beside if is_peft and METADATA not in (file.metadata() or {}) and beside.is_file() else None


def _modules(keys: list[str], path: Path) -> dict[str, dict[str, str]]:
    """Module to role to key."""
    found: dict[str, dict[str, str]] = {}
    strange = []
    for key in keys:
        match = _KEY.fullmatch(key)
        if match is None or key.startswith(_TEXT) or ".text_encoder" in key:
            strange.append(key)
            continue
        module, role = match[1], _ROLES[match[2]]
        if role in found.setdefault(module, {}):
            raise WeightsError(f"{path}: {found[module][role]} and {key} are the same factor")
        found[module][role] = key
    if strange:
        kinds = {key: kind for key in strange if (kind := _kind(key)) is not None}
        if not found and not kinds:
            raise WeightsError(f"{path}: holds no LoRA keys (the first key is {strange[0]}); {UNDERSTOOD}")
        key = next(iter(kinds), strange[0])
        what = f"belongs to {kinds[key]}" if key in kinds else "is not understood"
        raise WeightsError(f"{path}: {key} {what}; {UNDERSTOOD}")
    if not found:
        raise WeightsError(f"{path}: holds no LoRA keys, it is empty; {UNDERSTOOD}")
    return found


def _kind(key: str) -> str | None:
    if key.startswith(_TEXT) or ".text_encoder" in key:
        return "a text encoder, whose embeddings are computed before the training"
    return next((kind for kind, marks in _OTHERS.items() if any(mark in key for mark in marks)), None)


def _factors(
    module: str,
    keys: Mapping[str, str],
    stored: StoredTensors,
    alpha: float | None,
    settings: Mapping[str, Any],
    path: Path,
) -> Factors:
    for role in (_DOWN, _UP):
        if role not in keys:
            raise WeightsError(f"{path}: {next(iter(keys.values()))}: its factor '{role}' is missing")
    down_key, up_key = keys[_DOWN], keys[_UP]
    down_shape, up_shape = stored.shapes[down_key], stored.shapes[up_key]
    rank = down_shape[0] if down_shape else 0
    if len(down_shape) < 2 or len(up_shape) < 2 or not rank or up_shape[1] != rank:
        raise WeightsError(
            f"{path}: {down_key} has shape {down_shape} and {up_key} {up_shape}: they must be (rank, in) and "
            "(out, rank) with a rank of at least 1"
        )
    down, up = (np.asarray(stored.read(key), np.float32) for key in (down_key, up_key))
    for key, value in ((down_key, down), (up_key, up)):
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {key} holds numbers that are not finite")
    configured = _of_module("lora_alpha", "alpha_pattern", module, settings, path)
    if alpha is None:
        alpha = float(rank) if configured is None else configured
    elif configured not in (None, alpha):
        raise WeightsError(f"{path}: {keys[_ALPHA]} is {alpha:g}, its configuration says {configured:g}")
    configured = _of_module("r", "rank_pattern", module, settings, path)
    if configured not in (None, rank):
        raise WeightsError(f"{path}: {down_key} has rank {rank}, its configuration says {configured:g}")
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Factors(module, down_key, up_key, down, up, scale)


def _number(value: np.ndarray, key: str, path: Path) -> float:
    value = np.asarray(value, np.float32)
    if value.size != 1 or not np.isfinite(value).all():
        raise WeightsError(f"{path}: {key} has shape {value.shape}, must be one finite number")
    return float(value.reshape(()))


def peft_name(module: str) -> str:
    """A module's name in diffusers, of a file of PEFT or diffusers."""
    return module.removeprefix(PEFT).removeprefix(TRANSFORMER)


def _of_module(name: str, pattern_name: str, module: str, settings: Mapping[str, Any], path: Path) -> float | None:
    """A number of PEFT's configuration for one module: that of the first pattern that fits, or the general one.

    A pattern is a regular expression for the end of a module's name (`peft.utils.other.get_pattern_key`).
    """
    patterns = settings.get(pattern_name) or {}
    try:
        chosen = [v for pattern, v in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", peft_name(module))]
    except (re.error, AttributeError) as e:
        raise WeightsError(f"{path}: {pattern_name}={patterns!r} is no table of patterns ({e})") from e
    value = chosen[0] if chosen else settings.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WeightsError(f"{path}: {name}={value!r} of {module} must be a finite number")
    return float(value)


def _settings(path: Path, header: Mapping[str, str], modules: Mapping[str, object]) -> dict[str, Any]:
    """PEFT's configuration of the transformer's additions; empty if there is none."""
    if METADATA in header:
        try:
            values = json.loads(header[METADATA])
        except ValueError as e:
            raise WeightsError(f"{path}: {METADATA} in the header is not JSON ({e})") from e
        if not isinstance(values, dict):
            raise WeightsError(f"{path}: {METADATA} in the header must be a JSON object")
        own = {k.removeprefix(TRANSFORMER): v for k, v in values.items() if k.startswith(TRANSFORMER)}
        values = own or values
    elif any(module.startswith(PEFT) for module in modules) and (beside := config_file(path)) is not None:
        values = read_json(beside)
    else:
        return {}
    if values.get("use_dora"):
        raise WeightsError(f"{path}: its configuration says use_dora; {UNDERSTOOD}")
    if values.get("peft_type", "LORA") != "LORA":
        raise WeightsError(f"{path}: its configuration says peft_type={values['peft_type']!r}; {UNDERSTOOD}")
    return values
