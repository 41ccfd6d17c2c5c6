"""The folder of a model's expressions gives back what it was made of, and is refused if it does not fit; no PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from genaffect_jax.config import TextConfig
from genaffect_jax.data.prompts.table import PromptTable
from genaffect_jax.errors import DataError, WeightsError
from genaffect_jax.expressions.action_units import CHANNELS, expression_vector
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.expressions.vocabulary import vocabulary
from genaffect_jax.interop.torch.expressions_folder import read_expressions, write_expressions

TEXT = TextConfig(template="ein {word}es Gesicht", plain="ein Gesicht", negative="unscharf", max_sequence_length=99)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def prompt_table(dtype: type = np.float32) -> PromptTable:
    rng = np.random.default_rng(0)
    tokens, pooled = rng.standard_normal((3, 5, 4)).astype(dtype), rng.standard_normal((3, 2)).astype(dtype)
    return PromptTable(("ein Gesicht", "unscharf", "ein joyes Gesicht"), tokens, pooled, "another {word}", "ab12", 77)


def word_prototypes() -> WordPrototypes:
    """Words in an unusual order, and float32 numbers that need many digits."""
    extreme = [np.pi, 1 / 3, -0.0, 1e-45, 3.4028235e38, 16777217.0, 1e-7]
    vectors = {
        "zest": np.array(extreme, np.float32),
        "neutral": np.random.default_rng(0).standard_normal(7).astype(np.float32),
        "anger": np.random.default_rng(1).standard_normal(7).astype(np.float32) * 1e-3,
    }
    return WordPrototypes(vectors, {"zest": 3, "neutral": 1, "anger": 12345}, "some_encoder", "cd34")


def assert_same_table(found: PromptTable | None, expected: PromptTable) -> None:
    assert found is not None
    for field in dataclasses.fields(PromptTable):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        else:
            assert a == b


def assert_same_prototypes(found: WordPrototypes | None, expected: WordPrototypes) -> None:
    assert found is not None
    assert list(found.vectors) == list(expected.vectors)
    for word, vector in expected.vectors.items():
        assert (found.vectors[word].dtype, found.vectors[word].tobytes()) == (vector.dtype, vector.tobytes())
    assert dict(found.images) == dict(expected.images)
    assert (found.encoder, found.encoder_checksum) == (expected.encoder, expected.encoder_checksum)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_prompt_table_comes_back_bit_for_bit(dtype, tmp_path):
    table = prompt_table(dtype)
    write_expressions(tmp_path / "expressions", TEXT, table, None)
    back = read_expressions(tmp_path / "expressions")
    assert_same_table(back.prompts, table)
    assert back.text == TEXT
    assert back.prototypes is None


@pytest.mark.parametrize("prompts", [prompt_table(), None], ids=["prompts", "no_prompts"])
def test_word_prototypes_come_back_bit_for_bit(prompts, tmp_path):
    prototypes = word_prototypes()
    write_expressions(tmp_path / "expressions", TEXT, prompts, prototypes)
    back = read_expressions(tmp_path / "expressions")
    assert_same_prototypes(back.prototypes, prototypes)
    assert back.text == TEXT
    assert (back.prompts is None) == (prompts is None)


def test_no_prompts_and_no_prototypes_come_back_as_none(tmp_path):
    write_expressions(tmp_path / "expressions", TEXT, None, None)
    back = read_expressions(tmp_path / "expressions")
    assert (back.text, back.prompts, back.prototypes) == (TEXT, None, None)


def test_the_place_of_the_embeddings_is_not_part_of_the_folder(tmp_path):
    write_expressions(tmp_path / "expressions", dataclasses.replace(TEXT, embeddings=Path("/x")), None, None)
    assert read_expressions(tmp_path / "expressions").text == TEXT


def test_action_units_are_written_with_the_digits_of_the_vocabulary(tmp_path):
    write_expressions(tmp_path / "expressions", TEXT, None, None)
    config = json.loads((tmp_path / "expressions" / "config.json").read_text())
    assert [word["name"] for word in config["words"]] == list(vocabulary())
    for word in config["words"]:
        assert word["vector"].keys() <= set(CHANNELS)
        assert max(len(repr(value)) for value in word["vector"].values()) <= 6
        expected = vocabulary()[word["name"]]
        np.testing.assert_array_equal(expression_vector(word["vector"]), expected.vector)
        assert (word["cluster"], word["subcluster"]) == (expected.cluster, expected.subcluster)


def test_a_component_inside_a_pipeline_folder_is_found(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    write_expressions(tmp_path / "expressions", TEXT, prompt_table(), None)
    assert_same_table(read_expressions(tmp_path).prompts, prompt_table())


def test_sorted_keys_change_nothing(tmp_path):
    folder = tmp_path / "expressions"
    write_expressions(folder, TEXT, prompt_table(), word_prototypes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, sort_keys=True))
    back = read_expressions(folder)
    assert_same_prototypes(back.prototypes, word_prototypes())
    assert_same_table(back.prompts, prompt_table())


def removed(name: str) -> Any:
    return lambda config: config.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(_class_name="AutoencoderKL"), "_class_name is 'AutoencoderKL'"),
        (lambda c: c.update(space="angles"), "space is 'angles', must be 'units' or 'encoder'"),
        (lambda c: c["words"][3]["vector"].update(AU12L=0.123), "entry 'words' differs"),
        (lambda c: c["words"].pop(), "entry 'words' differs"),
        (lambda c: c["words"].reverse(), "entry 'words' differs"),
        (lambda c: c["channels"].reverse(), "entry 'channels' differs"),
        (lambda c: c["degrees"].append("AU6L"), "entry 'degrees' differs"),
        (lambda c: c.update(neutral={"AU6L": 0.1}), "entry 'neutral' differs"),
        (lambda c: c.update(template="a face"), "template.* must contain {word}"),
        (removed("template"), "template is None, must be a text"),
        (removed("source"), "source is None, must be an object"),
        (removed("prompts"), "prompts is None, must be a list"),
        (lambda c: c["source"].pop("prompts"), "prompts is None, must be an object"),
        (lambda c: c["source"]["prompts"].pop("encoder"), "encoder is None, must be a text"),
        (lambda c: c["source"].update(max_sequence_length="9"), "max_sequence_length is '9', must be a whole number"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, message, tmp_path):
    folder = tmp_path / "expressions"
    write_expressions(folder, TEXT, prompt_table(), None)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        read_expressions(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["source"].pop("prototypes"), "prototypes is None, must be an object"),
        (lambda c: c["source"]["prototypes"]["images"].pop(), "must name the words with vectors"),
        (lambda c: c.update(neutral=None), "must name the words with vectors"),
        (lambda c: c.update(words=[]), "must name the words with vectors"),
        (lambda c: c["words"][0].update(name="delight"), "entry 'words' differs"),
    ],
)
def test_prototypes_that_do_not_fit_are_refused(change, message, tmp_path):
    folder = tmp_path / "expressions"
    write_expressions(folder, TEXT, None, word_prototypes())
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        read_expressions(folder)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"joyy": np.zeros(2, np.float32)}, "no words joyy"),
        ({"joy": np.array([0, np.nan], np.float32)}, "not finite: joy"),
    ],
)
def test_prototypes_that_could_not_be_read_are_not_written(vectors, message, tmp_path):
    prototypes = WordPrototypes(vectors, dict.fromkeys(vectors, 1), "some_encoder", "cd34")
    with pytest.raises(WeightsError, match=message):
        write_expressions(tmp_path / "expressions", TEXT, None, prototypes)
    assert not any(tmp_path.iterdir())


def test_embeddings_of_more_prompts_than_are_named_are_refused(tmp_path):
    folder = tmp_path / "expressions"
    write_expressions(folder, TEXT, prompt_table(), None)
    config = json.loads((folder / "config.json").read_text())
    config["prompts"].pop()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="2 prompts with tokens"):
        read_expressions(folder)


def test_missing_embeddings_are_named(tmp_path):
    folder = tmp_path / "expressions"
    write_expressions(folder, TEXT, prompt_table(), None)
    (folder / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=WEIGHTS):
        read_expressions(folder)
