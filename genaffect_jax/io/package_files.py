"""What lies inside this package under the name `package:NAME`: weight files of single networks, and released models."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

PACKAGE_PREFIX = "package:"
DEFAULT_MODEL = f"{PACKAGE_PREFIX}avatar_s"
"""The model that is sampled where none is named."""


def assets() -> Path:
    """The folder of weight files and of folders of released models."""
    return Path(str(importlib.resources.files("genaffect_jax"))) / "assets"


def resolve_model(model: str | Path) -> Path:
    """The folder of a model: `package:NAME` in this package, or the path itself. It need not be there."""
    text = str(model)
    if not text.startswith(PACKAGE_PREFIX):
        return Path(model)
    return assets() / Path(text.removeprefix(PACKAGE_PREFIX)).name


def package_models() -> list[str]:
    """The released models in this package, as `package:NAME`."""
    return sorted(f"{PACKAGE_PREFIX}{entry.name}" for entry in assets().iterdir() if entry.is_dir())
