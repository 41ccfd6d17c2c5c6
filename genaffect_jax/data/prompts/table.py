"""Prompts of expressions, and `PromptTable`: their text embeddings in one file that needs no text encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int32

from genaffect_jax.config import MMDiTConfig, TextConfig
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import Expression
from genaffect_jax.expressions.vocabulary import vocabulary
from genaffect_jax.io.array_file import read_arrays, write_arrays

COMMAND = "python -m genaffect_jax.prepare prompts --config PRESET --pipeline DIR --out FILE"
_PLACEHOLDER = "{word}"
_ARRAYS = {"tokens", "pooled"}
_ENTRIES = {"prompts", "template", "encoder", "max_sequence_length"}


def prompt_for(expression: Expression, text: TextConfig) -> str:
    """`text.template` with the expression's word, or `text.plain` if the expression is not one word.

    The weight of a word, gaze and head do not change the prompt; the expression vector holds them.
    """
    return text.plain if expression.word is None else text.template.replace(_PLACEHOLDER, expression.word)


def all_prompts(text: TextConfig) -> tuple[str, ...]:
    """Every possible result of `prompt_for`, and the negative prompt, each once."""
    words = [text.template.replace(_PLACEHOLDER, word) for word in ("neutral", *vocabulary())]
    return tuple(dict.fromkeys([text.negative, text.plain, *words]))


@dataclass(frozen=True, eq=False)
class PromptTable:
    """Prompts with their text embeddings.

    Attributes:
        prompts: the P texts, each once.
        tokens: float32, bfloat16 or float16 [P, T, C], the text tokens.
        pooled: [P, D], same type, the pooled embeddings.
        template: the prompt template (`TextConfig.template`) of the prompts.
        encoder: digest of the text encoders' and tokenizers' files.
        max_sequence_length: number of T5 tokens among the T.
    """

    prompts: tuple[str, ...]
    tokens: Float[np.ndarray, "P T C"]
    pooled: Float[np.ndarray, "P D"]
    template: str
    encoder: str
    max_sequence_length: int

    def __post_init__(self) -> None:
        count = len(self.prompts)
        if len(set(self.prompts)) != count:
            raise DataError("prompt table: a prompt is there twice")
        if self.tokens.ndim != 3 or self.pooled.ndim != 2 or not len(self.tokens) == len(self.pooled) == count > 0:
            raise DataError(
                f"prompt table: {count} prompts with tokens {self.tokens.shape} and pooled embeddings "
                f"{self.pooled.shape}, must be [P, T, C] and [P, D]"
            )
        if self.tokens.dtype != self.pooled.dtype:
            raise DataError(f"prompt table: tokens are {self.tokens.dtype}, pooled embeddings {self.pooled.dtype}")

    @property
    def dtype(self) -> str:
        """Type of the embeddings."""
        return self.tokens.dtype.name

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {prompt: row for row, prompt in enumerate(self.prompts)}

    def rows(self, prompts: Iterable[str]) -> Int32[np.ndarray, " n"]:
        """The row of each prompt.

        Raises:
            DataError: prompts are not in the table; the message names them and the command that writes a table.
        """
        prompts = list(prompts)
        missing = list(dict.fromkeys(p for p in prompts if p not in self._rows))
        if missing:
            shown = ", ".join(repr(p) for p in missing[:3]) + (
                f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            )
            raise DataError(
                f"prompt table (made with template {self.template!r}): has no embeddings of {shown}; "
                f"make it again: {COMMAND}"
            )
        return np.array([self._rows[p] for p in prompts], np.int32)

    def write(self, path: Path) -> None:
        """Writes the table to a safetensors file, atomically."""
        entries = {
            "prompts": json.dumps(self.prompts),
            "template": self.template,
            "encoder": self.encoder,
            "dtype": self.dtype,
            "max_sequence_length": str(self.max_sequence_length),
        }
        write_arrays(path, {"tokens": self.tokens, "pooled": self.pooled}, entries)

    @classmethod
    def read(cls, path: Path) -> PromptTable:
        """Reads a file of `write`.

        Raises:
            DataError: the file is missing or damaged, or holds no prompt table.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such prompt table; make it: {COMMAND}")
        arrays, entries = read_arrays(path)
        if arrays.keys() != _ARRAYS or not entries.keys() >= _ENTRIES:
            raise DataError(f"{path}: no prompt table (holds {sorted(arrays)} with entries {sorted(entries)})")
        return cls(
            prompts=tuple(json.loads(entries["prompts"])),
            tokens=arrays["tokens"],
            pooled=arrays["pooled"],
            template=entries["template"],
            encoder=entries["encoder"],
            max_sequence_length=int(entries["max_sequence_length"]),
        )

    def check(self, text: TextConfig, network: MMDiTConfig) -> None:
        """Checks that the table fits a configuration.

        Raises:
            DataError: a width or the T5 length differs, or the negative prompt is missing.
        """
        for name, found, needed in (
            ("token width (mmdit.joint_attention_dim)", self.tokens.shape[-1], network.joint_attention_dim),
            ("pooled width (mmdit.pooled_projection_dim)", self.pooled.shape[-1], network.pooled_projection_dim),
            ("T5 length (text.max_sequence_length)", self.max_sequence_length, text.max_sequence_length),
        ):
            if found != needed:
                raise DataError(f"prompt table: {name} is {found}, the configuration needs {needed}")
        self.rows([text.negative])
