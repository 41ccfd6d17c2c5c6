"""The prompt table of a run folder: taken over when a run begins, read whenever it goes on or is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from genaffect_jax.checkpoints.run_dir import PROMPTS_FILE
from genaffect_jax.config import DenoiserRun, TextConfig
from genaffect_jax.data.prompts.table import PromptTable
from genaffect_jax.data.prompts.templates import prompt_for
from genaffect_jax.data.sources.base import Example
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import parse_expression


def read_prompts(config: DenoiserRun, path: Path) -> PromptTable | None:
    """The prompt table of a model; None for a model with register tokens, which reads no prompts.

    Raises:
        DataError: the table is missing, damaged or does not fit the configuration.
    """
    if config.model.mmdit.register_tokens:
        return None
    table = PromptTable.read(path)
    try:
        table.check(config.text, config.model.mmdit)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    return table


def claim_prompts(
    config: DenoiserRun, workdir: Path, images: Sequence[Example]
) -> tuple[PromptTable, Int32[np.ndarray, " images"]] | None:
    """The prompt table of a run, with the row of each image's prompt; None for a model that reads no prompts.

    A run that begins copies `text.embeddings` into its folder, so that the folder stays usable when the original
    file moves or changes; one that continues reads the copy.

    Raises:
        DataError: as `read_prompts`, or an image's prompt is not in the table. Nothing has been copied then.
    """
    copy = workdir / PROMPTS_FILE
    source = copy if copy.exists() or config.text.embeddings is None else config.text.embeddings
    table = read_prompts(config, source)
    if table is None:
        return None
    try:
        rows = prompt_rows(table, config.text, images)
    except DataError as e:
        raise DataError(f"{source}: {e}") from e
    if source != copy:
        table.write(copy)
    return table, rows


def prompt_rows(table: PromptTable, text: TextConfig, images: Sequence[Example]) -> Int32[np.ndarray, " images"]:
    """The row of each image's prompt.

    Raises:
        DataError: prompts are not in the table; they are named.
    """
    prompts = {label: prompt_for(parse_expression(label), text) for label in {p.label for p in images}}
    return table.rows([prompts[p.label] for p in images])
