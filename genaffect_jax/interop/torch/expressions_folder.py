"""The expressions of a model as a folder that `genaffect_expressions.GenAffectExpressions` loads, and back.

The folder holds all of `expressions.grammar` that depends on a model: words and vectors, prompts and their embeddings.
What only this package needs stands in `source`, an entry of `config.json` that the class keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from genaffect_jax.config import TextConfig
from genaffect_jax.data.prompts.table import PromptTable
from genaffect_jax.errors import ConfigError, WeightsError, listed
from genaffect_jax.expressions.action_units import CHANNELS, DEGREES, neutral
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.expressions.vocabulary import vocabulary
from genaffect_jax.interop.diffusers.folders import CONFIG_FILE, component_folder, new_component, read_config
from genaffect_jax.interop.diffusers.tensor_files import ArrayTensors, open_tensors, write_tensors

CLASS_NAME = "GenAffectExpressions"
FOLDER = "expressions"
"""Name of the component in a pipeline's folder."""
_NEUTRAL = "neutral"
_TOKENS, _POOLED = "prompt_embeds", "pooled_prompt_embeds"
_TABLE_ENTRIES = {"template": str, "encoder": str, "max_sequence_length": int}
_KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class FolderExpressions:
    """The content of an expressions folder.

    Attributes:
        text: how prompts are made of expressions; `embeddings` is None.
        prompts: the embeddings of the prompts; None if the model reads none.
        prototypes: the vectors of words in an encoder's space; None in the space of action units.
    """

    text: TextConfig
    prompts: PromptTable | None
    prototypes: WordPrototypes | None


def write_expressions(
    folder: Path, text: TextConfig, prompts: PromptTable | None, prototypes: WordPrototypes | None
) -> None:
    """Writes the folder of a model's expressions, atomically.

    Args:
        folder: the component's folder; an earlier one of the same class is replaced.
        text: the templates of the prompts.
        prompts: the prompt table of a model with a text stream. Embeddings keep their type.
        prototypes: the words of a model in an encoder's space; None writes the vocabulary's vectors of action units.

    Raises:
        WeightsError: `folder` holds other files, or a prototype is of a word outside the vocabulary or not finite.
    """
    source: dict[str, Any] = {"max_sequence_length": text.max_sequence_length}
    tokens, pooled = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0), np.float32)
    if prompts is not None:
        tokens, pooled = prompts.tokens, prompts.pooled
        source["prompts"] = {name: getattr(prompts, name) for name in _TABLE_ENTRIES}
    if prototypes is not None:
        _require_writable(folder, prototypes)
        source["prototypes"] = {
            "encoder": prototypes.encoder,
            "encoder_checksum": prototypes.encoder_checksum,
            # A list, as diffusers sorts the keys of objects.
            "images": [[word, prototypes.images[word]] for word in prototypes.vectors],
        }
    config = {
        **_space(prototypes),
        "template": text.template,
        "plain": text.plain,
        "negative": text.negative,
        "prompts": [] if prompts is None else list(prompts.prompts),
        "shape": [*tokens.shape[1:], *pooled.shape[1:]],
        "source": source,
    }
    with new_component(folder, CLASS_NAME, config) as temporary:
        write_tensors(temporary, ArrayTensors({_TOKENS: tokens, _POOLED: pooled}), tokens.nbytes + pooled.nbytes)


def read_expressions(folder: Path, variant: str | None = None) -> FolderExpressions:
    """Reads a folder of `write_expressions`, or one that the class wrote with `save_pretrained`.

    Args:
        folder: the component's folder, or a pipeline's with an `expressions/`.
        variant: variant of the files (`fp16`).

    Raises:
        WeightsError: a file is missing or damaged or of another class, or channels and words are not those of this
            version, so that the same text would give another vector here.
        DataError: the embeddings do not fit the prompts.
    """
    folder = component_folder(folder, FOLDER)
    path = folder / CONFIG_FILE
    config = read_config(folder, CLASS_NAME)
    source = _entry(path, config, "source", dict)
    space = config.get("space")
    if space not in ("units", "encoder"):
        raise WeightsError(f"{path}: space is {space!r}, must be 'units' or 'encoder'")
    prototypes = None
    if space == "encoder":
        prototypes = _read_prototypes(path, config, _entry(path, source, "prototypes", dict))
    for name, value in _space(prototypes).items():
        if config.get(name) != value:
            raise WeightsError(f"{path}: entry {name!r} differs from that of this version of the package")
    prompts = None
    if names := _entry(path, config, "prompts", list):
        table = _entry(path, source, "prompts", dict)
        with open_tensors(folder, variant) as stored:
            if stored.shapes.keys() != {_TOKENS, _POOLED}:
                raise WeightsError(f"{folder}: holds {sorted(stored.shapes)}, must hold {_TOKENS} and {_POOLED}")
            prompts = PromptTable(
                prompts=tuple(names),
                tokens=stored.read(_TOKENS),
                pooled=stored.read(_POOLED),
                **{name: _entry(path, table, name, kind) for name, kind in _TABLE_ENTRIES.items()},
            )
    try:
        text = TextConfig(
            **{name: _entry(path, config, name, str) for name in ("template", "plain", "negative")},
            max_sequence_length=_entry(path, source, "max_sequence_length", int),
        )
    except ConfigError as e:
        raise WeightsError(f"{path}: {e}") from e
    return FolderExpressions(text, prompts, prototypes)


def _space(prototypes: WordPrototypes | None) -> dict[str, Any]:
    """The entries of `config.json` that give vectors to texts.

    Words are a list, as diffusers sorts the keys of objects, and `all` has an order.
    """
    words = [{"name": w.name, "cluster": w.cluster, "subcluster": w.subcluster} for w in vocabulary().values()]
    if prototypes is None:
        return {
            "space": "units",
            "channels": list(CHANNELS),
            "degrees": list(DEGREES),
            "words": [{**word, "vector": _sparse(vocabulary()[word["name"]].vector)} for word in words],
            "neutral": _sparse(neutral()),
        }
    vectors = {name: _decimals(vector) for name, vector in prototypes.vectors.items()}
    return {
        "space": "encoder",
        "channels": [],
        "degrees": [],
        "words": [{**word, "vector": vectors.get(word["name"])} for word in words],
        "neutral": vectors.get(_NEUTRAL),
    }


def _sparse(vector: Float32[np.ndarray, " W"]) -> dict[str, float]:
    """The channels of a vector that are not zero."""
    return {name: value for name, value in zip(CHANNELS, _decimals(vector), strict=True) if value != 0}


def _decimals(vector: Float32[np.ndarray, " W"]) -> list[float]:
    """The numbers with the fewest digits that give the same float32 numbers."""
    short = [float(str(value)) for value in vector]
    return [s if np.float32(s) == value else float(value) for s, value in zip(short, vector, strict=True)]


def _require_writable(folder: Path, prototypes: WordPrototypes) -> None:
    unknown = sorted(prototypes.vectors.keys() - {_NEUTRAL, *vocabulary()})
    if unknown:
        raise WeightsError(f"{folder}: not written: the vocabulary has no words {', '.join(unknown)}")
    bad = sorted(name for name, vector in prototypes.vectors.items() if not np.isfinite(vector).all())
    if bad:
        raise WeightsError(
            f"{folder}: not written: vectors with numbers that are not finite: {listed(bad, separator=', ')}"
        )


def _read_prototypes(path: Path, config: dict[str, Any], source: dict[str, Any]) -> WordPrototypes:
    records = [*_entry(path, config, "words", list), {"name": _NEUTRAL, "vector": config.get(_NEUTRAL)}]
    vectors = {record["name"]: record["vector"] for record in records if record["vector"] is not None}
    images = dict(_entry(path, source, "images", list))
    if images.keys() != vectors.keys():
        raise WeightsError(f"{path}: source.prototypes.images must name the words with vectors, {sorted(vectors)}")
    return WordPrototypes(
        vectors={word: np.array(vectors[word], np.float32) for word in images},
        images=images,
        encoder=_entry(path, source, "encoder", str),
        encoder_checksum=_entry(path, source, "encoder_checksum", str),
    )


def _entry(path: Path, values: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(values.get(name), kind):
        raise WeightsError(f"{path}: {name} is {values.get(name)!r}, must be {_KINDS[kind]}")
    return values[name]
