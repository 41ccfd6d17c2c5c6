"""Prompts of expressions, for models with a text stream."""

from __future__ import annotations

from genaffect_jax.config import TextConfig
from genaffect_jax.expressions.grammar import Expression
from genaffect_jax.expressions.vocabulary import vocabulary

_WORD = "{word}"


def prompt_for(expression: Expression, text: TextConfig) -> str:
    """`text.template` with the expression's word, or `text.plain` if the expression is not one word.

    The weight of a word, gaze and head do not change the prompt; the expression vector holds them.
    """
    return text.plain if expression.word is None else text.template.replace(_WORD, expression.word)


def all_prompts(text: TextConfig) -> tuple[str, ...]:
    """Every possible result of `prompt_for`, and the negative prompt, each once."""
    words = [text.template.replace(_WORD, word) for word in ("neutral", *vocabulary())]
    return tuple(dict.fromkeys([text.negative, text.plain, *words]))
