"""Which files of a component's folder hold its weights, by the names that diffusers and transformers give them.

A component may be there in several *variants* (`fp16`, `bf16`, `ema`), whose files have the variant in their names:
`diffusion_pytorch_model.fp16.safetensors`, or an index `diffusion_pytorch_model.safetensors.index.fp16.json` of several
files. Which one is meant is for the caller to say; only the files without a variant are read without being asked for.
"""

from __future__ import annotations

import re
from pathlib import Path

from genaffect_jax.errors import WeightsError, listed

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_VARIANT = re.compile(r"[\w-]+")


def find_weights(folder: Path, stem: str, variant: str | None = None) -> Path:
    """The safetensors file of a component, or the index (`.json`) of its several files.

    Args:
        folder: the component's folder.
        stem: `DIFFUSERS_STEM` or `TRANSFORMERS_STEM`.
        variant: the variant; None for the files without one.

    Raises:
        WeightsError: there is no such file, or both a file and an index. If there are files of another variant, the
            error is about the field `variant`, names them, and can be renamed.
    """
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise WeightsError("must be letters, digits, - and _, such as fp16", field="variant", found=repr(variant))
    suffix = "" if variant is None else f".{variant}"
    whole = folder / f"{stem}{suffix}.safetensors"
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    if whole.is_file() and index.is_file():
        # transformers itself reads the whole file without a word, however old it is.
        raise WeightsError(f"{folder}: has both {whole.name} and {index.name}; which one counts is not clear")
    if whole.is_file():
        return whole
    if index.is_file():
        return index
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder")
    names = sorted(path.name for path in folder.iterdir())
    others = variants(names, stem)
    if variant is not None:
        plain = "; the files without a variant are there" if {whole_name(stem), index_name(stem)} & set(names) else ""
        reason = f"{folder} has no {whole.name} and no {index.name} (variants there: {_named(others)}{plain})"
        raise WeightsError(reason, field="variant", found=variant)
    if others:
        raise WeightsError(
            f"{folder} has weights of the variant {_named(others, ' or ')} alone, none without a variant: name the one "
            "to read",
            field="variant",
        )
    found = listed(names, separator=", ", characters=300) or "nothing"
    message = f"{folder}: has neither {whole.name} nor {index.name} (has {found})"
    if any(name.endswith(PICKLES) for name in names):
        message += "; pickle files are not read, as they can run any code: convert them to safetensors"
    raise WeightsError(message)


def variants(names: list[str], stem: str) -> list[str]:
    """The variants among the file names of a folder, sorted.

    Shards may carry the variant before or after their number; both spellings are in use.
    """
    shard = r"-\d{5}-of-\d{5}"
    forms = (
        rf"{stem}\.([\w-]+?)(?:{shard})?\.safetensors",
        rf"{stem}{shard}\.([\w-]+)\.safetensors",
        rf"{stem}\.safetensors\.index\.([\w-]+)\.json",
    )
    found = (re.fullmatch(form, name) for name in names for form in forms)
    return sorted({match[1] for match in found if match})


def whole_name(stem: str) -> str:
    """Name of the one file without a variant."""
    return f"{stem}.safetensors"


def index_name(stem: str) -> str:
    """Name of the index without a variant."""
    return f"{stem}.safetensors.index.json"


def _named(names: list[str], separator: str = ", ") -> str:
    return listed(names, 10, separator=separator) or "none"
