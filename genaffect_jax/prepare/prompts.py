"""`python -m genaffect_jax.prepare prompts`: encode the prompts of a preset, once, before training.

    python -m genaffect_jax.prepare prompts --config PRESET --pipeline DIR --out prompts.safetensors

`DIR` is a diffusers pipeline folder of the SD3 family. Training and sampling read the written table (`text.embeddings`)
and need no text encoder. Needs the extra `torch`, unless every prompt is in the cache already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from genaffect_jax.cli import load_preset
from genaffect_jax.config import DenoiserRun
from genaffect_jax.data.prompts.cache import PromptCache, digest_files, encode_cached
from genaffect_jax.data.prompts.table import PromptTable, all_prompts
from genaffect_jax.errors import ConfigError, WeightsError
from genaffect_jax.interop.diffusers.pipeline_folder import text_parts
from genaffect_jax.io.progress import progress_bar
from genaffect_jax.io.weight_file import WeightDType

Embed = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Arguments:
    """Encode the prompts of a preset with the text encoders of an SD3 pipeline."""

    config: Path
    """Preset: a Python file with config(); its field `text` decides the prompts."""
    pipeline: Path
    """Folder of a diffusers StableDiffusion3Pipeline, with its tokenizers and text encoders."""
    out: Path
    """The table to write (safetensors); training reads it as text.embeddings."""
    cache: Path | None = None
    """Cache folder; results are cached by prompt and encoder checksum. Default: prompt_cache beside out."""
    device: str = "cpu"
    """Device of the text encoders: cpu, cuda or cuda:N."""
    variant: str | None = None
    """Variant of the text encoders' weight files, such as fp16; None for the files without a variant."""
    dtype: WeightDType = "bfloat16"
    """Type of the text encoders and of the table; float32 needs twice the memory (T5: 19 GB)."""


def prepare(arguments: Arguments) -> PromptTable:
    """Encodes the prompts that the cache lacks and writes the table.

    Raises:
        ConfigError, DataError, WeightsError: see their classes.
        ImportError: a prompt must be encoded, and the extra `torch` is not installed.
    """
    run = load_preset(arguments.config, DenoiserRun)
    if not run.model.mmdit.reads_prompts:
        raise ConfigError("its model has register tokens and reads no prompts", field="config", found=arguments.config)
    parts = text_parts(arguments.pipeline, arguments.variant)
    cache_dir = arguments.cache or arguments.out.parent / "prompt_cache"
    with progress_bar("reading text encoder files", len(parts.files)) as step:
        digest = digest_files(parts.files, cache_dir, step)
    prompts, length = all_prompts(run.text), run.text.max_sequence_length

    def load() -> Embed:
        from genaffect_jax.interop.diffusers.text_encoders import (
            TextEncoders,  # needs PyTorch, and only if there is work
        )

        encoders = TextEncoders(
            arguments.pipeline,
            max_sequence_length=length,
            device=arguments.device,
            dtype=arguments.dtype,
            variant=arguments.variant,
        )
        return encoders.encode

    cache = PromptCache(cache_dir, digest, length, arguments.dtype)
    with progress_bar("encoding prompts", len(prompts)) as step:
        tokens, pooled = encode_cached(prompts, cache, load, progress=step)
    table = PromptTable(prompts, tokens, pooled, run.text.template, digest, length)
    table.check(run.text, run.model.mmdit)
    table.write(arguments.out)
    return table


def run(arguments: Arguments, console: Console) -> bool:
    """Writes the table and reports it.

    Raises:
        ConfigError, DataError, WeightsError: see `prepare`; a missing extra is a WeightsError.
    """
    try:
        table = prepare(arguments)
    except ImportError as e:
        raise WeightsError(str(e)) from e
    size = arguments.out.stat().st_size / 1e6
    console.print(f"{len(table.prompts)} prompts in {arguments.out} ({size:.0f} MB, {table.dtype})", soft_wrap=True)
    return True
