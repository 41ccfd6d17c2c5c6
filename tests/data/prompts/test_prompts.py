"""Prompts, the table of their embeddings and the cache behind it; no PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from genaffect_jax.config import MMDiTConfig, TextConfig
from genaffect_jax.data.prompts.cache import PromptCache, digest_files, encode_cached
from genaffect_jax.data.prompts.table import PromptTable, all_prompts, prompt_for
from genaffect_jax.errors import DataError
from genaffect_jax.expressions.grammar import parse_expression, parse_expressions
from genaffect_jax.prepare import __main__ as prepare
from genaffect_jax.prepare import prompts

TEXT = TextConfig(template="a {word} face", plain="a face", negative="")


@pytest.mark.parametrize(
    ("expression", "prompt"),
    [
        ("joy", "a joy face"),
        ("joy:0.3", "a joy face"),
        ("neutral", "a neutral face"),
        ("joy + head_yaw=0.2,gaze_pitch=0.1", "a joy face"),
        ("joy + AU6=1", "a face"),
        ("0.5*joy + 0.5*fear", "a face"),
        ("AU12=1", "a face"),
        ("head_yaw=0.2", "a face"),
        ("joy:0", "a face"),
    ],
)
def test_one_word_gives_its_prompt_and_everything_else_the_plain_one(expression, prompt):
    assert prompt_for(parse_expression(expression), TEXT) == prompt


def test_all_prompts_are_the_words_neutral_plain_and_negative_each_once():
    prompts = all_prompts(TEXT)
    assert len(prompts) == len(set(prompts)) == 135 + 3
    assert {prompt_for(e, TEXT) for e in parse_expressions("all, neutral, AU1=1")} | {""} == set(prompts)
    assert len(all_prompts(dataclasses.replace(TEXT, negative="a face"))) == 135 + 2


def random_table(prompts=("", "a face", "a joy face"), dtype=np.float32, length=5) -> PromptTable:
    rng = np.random.default_rng(0)
    tokens, pooled = rng.standard_normal((len(prompts), 9, 6)), rng.standard_normal((len(prompts), 4))
    return PromptTable(tuple(prompts), tokens.astype(dtype), pooled.astype(dtype), "a {word} face", "abc", length)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_table_is_read_as_it_was_written(tmp_path, dtype):
    table = random_table(dtype=dtype)
    table.write(tmp_path / "new" / "prompts.safetensors")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["prompts.safetensors"]
    found = PromptTable.read(tmp_path / "new" / "prompts.safetensors")
    for name in ("prompts", "template", "encoder", "max_sequence_length", "dtype"):
        assert getattr(found, name) == getattr(table, name)
    assert found.tokens.tobytes() == table.tokens.tobytes()
    assert found.pooled.tobytes() == table.pooled.tobytes()


def test_a_missing_prompt_is_named_with_the_command_that_makes_it():
    table = random_table()
    assert table.rows(["a joy face", "", "a joy face"]).tolist() == [2, 0, 2]
    with pytest.raises(DataError, match=r"no embeddings of 'a fear face'; .*python -m genaffect_jax\.prepare"):
        table.rows(["a joy face", "a fear face"])


def test_a_table_that_does_not_fit_the_configuration_is_refused():
    table = random_table()
    network = MMDiTConfig(register_tokens=0, joint_attention_dim=6, pooled_projection_dim=4)
    text = dataclasses.replace(TEXT, max_sequence_length=5)
    table.check(text, network)
    for changed_text, changed_network, message in (
        (text, dataclasses.replace(network, joint_attention_dim=7), r"joint_attention_dim\) is 6.* needs 7"),
        (text, dataclasses.replace(network, pooled_projection_dim=9), r"pooled_projection_dim\) is 4.* needs 9"),
        (TEXT, network, r"max_sequence_length\) is 5.* needs 77"),
        (dataclasses.replace(text, negative="ugly"), network, "no embeddings of 'ugly'"),
    ):
        with pytest.raises(DataError, match=message):
            table.check(changed_text, changed_network)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_damaged_foreign_or_missing_table_is_refused_by_name(tmp_path):
    path = tmp_path / "prompts.safetensors"
    with pytest.raises(DataError, match=r"prompts\.safetensors: no such prompt table; make it: python -m"):
        PromptTable.read(path)
    random_table().write(path)
    whole = path.read_bytes()
    for damage in (
        lambda: flip(path, -1),  # a number
        lambda: flip(path, whole.index(b"a joy face")),  # a prompt
        lambda: path.write_bytes(whole[:-3]),
        lambda: path.write_bytes(b"no table"),
    ):
        path.write_bytes(whole)
        damage()
        with pytest.raises(DataError, match=r"prompts\.safetensors: damaged"):
            PromptTable.read(path)
    PromptCache(tmp_path, "abc", 5, "float32").put("x", np.ones((2, 3), np.float32), np.ones(4, np.float32))
    entry = PromptCache(tmp_path, "abc", 5, "float32").path("x")
    with pytest.raises(DataError, match="no prompt table"):
        PromptTable.read(entry)


class Counting:
    """Encoders that remember what they were asked."""

    def __init__(self):
        self.loads, self.asked = 0, []

    def load(self):
        self.loads += 1
        return self.encode

    def encode(self, prompts):
        self.asked += prompts
        values = np.array([len(p) for p in prompts], np.float32)
        return np.tile(values[:, None, None], (1, 2, 3)), np.tile(values[:, None], (1, 4))


def test_only_missing_prompts_are_encoded_and_the_encoders_load_only_for_them(tmp_path):
    cache, encoders, finished = PromptCache(tmp_path, "abc", 5, "float32"), Counting(), []
    encode_cached(["a", "bb"], cache, encoders.load)
    tokens, pooled = encode_cached(["ccc", "bb", "dddd", "ccc"], cache, encoders.load, 1, finished.append)
    assert (encoders.loads, encoders.asked, finished) == (2, ["a", "bb", "ccc", "dddd"], [1, 1, 1])
    assert (tokens[:, 0, 0].tolist(), pooled[:, 0].tolist()) == ([3, 2, 4, 3], [3, 2, 4, 3])
    encode_cached(["dddd", "a"], cache, encoders.load)
    assert encoders.loads == 2


@pytest.mark.parametrize("change", [("abd", 5, "float32"), ("abc", 6, "float32"), ("abc", 5, "bfloat16")])
def test_other_encoders_lengths_and_types_have_other_entries(tmp_path, change):
    encoders = Counting()
    encode_cached(["a"], PromptCache(tmp_path, "abc", 5, "float32"), encoders.load)
    encode_cached(["a"], PromptCache(tmp_path, *change), encoders.load)
    assert encoders.loads == 2


def test_a_corrupt_cache_entry_is_named_and_computed_again(tmp_path):
    cache, encoders = PromptCache(tmp_path, "abc", 5, "float32"), Counting()
    expected, _ = encode_cached(["a", "bb"], cache, encoders.load)
    path = cache.path("bb")
    for damage in (
        lambda: flip(path, -1),
        lambda: path.write_bytes(path.read_bytes()[:-5]),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(cache.path("a").read_bytes()),  # whole, but of another prompt
    ):
        damage()
        encoders.asked.clear()
        with pytest.warns(UserWarning, match=rf"{path.name}: .*computed again"):
            tokens, _ = encode_cached(["a", "bb"], cache, encoders.load)
        assert encoders.asked == ["bb"]
        np.testing.assert_array_equal(tokens, expected)
    encode_cached(["a", "bb"], cache, encoders.load)
    assert encoders.asked == ["bb"]  # whole again, on disk too


def test_the_digest_follows_content_and_names_and_reads_unchanged_files_once(tmp_path, monkeypatch):
    a, b, memory = tmp_path / "a", tmp_path / "b", tmp_path / "memory"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    first = digest_files({"x": a, "y": b}, memory)
    assert digest_files({"x": b, "y": a}, memory) != first
    reads = []
    real = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, kind: reads.append(file.name) or real(file, kind))
    assert digest_files({"x": a, "y": b}, memory) == first
    assert reads == []
    (memory / "files.json").write_text('{"broken')
    assert digest_files({"x": a, "y": b}, memory) == first
    assert len(reads) == 2
    b.write_bytes(b"owt")
    later = time.time() + 5
    os.utime(b, (later, later))
    assert digest_files({"x": a, "y": b}, memory) != first
    assert reads[2:] == [str(b)]
    moved = a.rename(tmp_path / "moved")
    b.write_bytes(b"two")
    assert digest_files({"x": moved, "y": b}, tmp_path / "other") == first


def test_without_pytorch_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "genaffect_jax.interop.diffusers.text_encoders", raising=False)
    with pytest.raises(ImportError, match=r"install the extra: pip install -c constraints.txt -e '.\[torch\]'"):
        importlib.import_module("genaffect_jax.interop.diffusers.text_encoders")


def test_prepare_refuses_a_preset_without_prompts_and_a_folder_that_is_not_there(tmp_path, preset, capsys):
    argv = ["--pipeline", str(tmp_path / "sd3"), "--out", str(tmp_path / "p.safetensors")]
    assert prepare.main(["prompts", "--config", str(preset()), *argv]) == 2
    assert "its model has register tokens and reads no prompts" in capsys.readouterr().err
    path = tmp_path / "text.py"
    path.write_text(
        "from pathlib import Path\nfrom genaffect_jax.config import *\n\ndef config():\n"
        "    model = ModelConfig(mmdit=MMDiTConfig(register_tokens=0, pooled_projection_dim=8))\n"
        "    return DenoiserRun(model=model, text=TextConfig(embeddings=Path('p.safetensors')))\n"
    )
    assert prepare.main(["prompts", "--config", str(path), *argv]) == 1
    assert f"{tmp_path / 'sd3'}: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "p.safetensors").exists()


def test_prepare_without_pytorch_is_one_line(tmp_path, preset, monkeypatch, capsys):
    def without_extra(arguments):
        raise ImportError("text encoders need PyTorch and transformers")

    monkeypatch.setattr(prompts, "prepare", without_extra)
    argv = ["--pipeline", str(tmp_path), "--out", str(tmp_path / "p.safetensors")]
    assert prepare.main(["prompts", "--config", str(preset()), *argv]) == 1
    assert capsys.readouterr().err == "error: text encoders need PyTorch and transformers\n"
