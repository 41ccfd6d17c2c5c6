"""`modelspec.*` entries of weight files: Stability's model metadata standard (github.com/Stability-AI/ModelSpec)."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from genaffect_jax.config import MMDiTConfig, ModelConfig
from genaffect_jax.interop.diffusers.components import FREE_FIELDS

SPEC = "modelspec."
"""Prefix of the entries."""
SPEC_VERSION = "1.0.1"
# The identifiers in the headers of the released files.
_ARCHITECTURES = {
    "stable-diffusion-v3-medium": MMDiTConfig.sd3_medium(),
    "stable-diffusion-v3.5-medium": MMDiTConfig.sd35_medium(),
    "stable-diffusion-v3.5-large": MMDiTConfig.sd35_large(),
}
_OTHER = "stable-diffusion-v3"
_WITHOUT_PROMPTS = "mmdit-with-register-tokens"


def modelspec(config: ModelConfig, *, title: str, implementation: str, part: str = "", **more: str) -> dict[str, str]:
    """The entries of a file.

    Args:
        config: the model.
        title: name of the model.
        implementation: whose variable names the keys are.
        part: appended to the architecture, of a file that holds an addition to the transformer.
        more: further entries, without prefix; empty ones are left out.
    """
    entries = {
        "sai_model_spec": SPEC_VERSION,
        "architecture": architecture(config.mmdit) + (f"/{part}" if part else ""),
        "implementation": implementation,
        "title": title,
        "resolution": f"{config.image_size}x{config.image_size}",
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        **{name: value for name, value in more.items() if value},
    }
    return {f"{SPEC}{name}": value for name, value in entries.items()}


def architecture(config: MMDiTConfig) -> str:
    """The identifier of the released architecture with the same weights' names and shapes, or of the family."""
    if not config.reads_prompts:
        return _WITHOUT_PROMPTS
    same = (name for name, released in _ARCHITECTURES.items() if _decisive(config) == _decisive(released))
    return next(same, _OTHER)


def _decisive(config: MMDiTConfig) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_FIELDS}
