"""The exported grammar understands and refuses the same texts as `expressions.grammar`, and gives the same vectors."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.expression_requests import NOT_UNDERSTOOD, UNDERSTOOD

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.torch

from genaffect_jax.config import TextConfig  # noqa: E402
from genaffect_jax.data.prompts.table import PromptTable, all_prompts, prompt_for  # noqa: E402
from genaffect_jax.errors import ExpressionError  # noqa: E402
from genaffect_jax.expressions.action_units import CHANNELS, DEGREES, SIDED_UNITS, WIDTH  # noqa: E402
from genaffect_jax.expressions.grammar import parse_expressions  # noqa: E402
from genaffect_jax.expressions.prototypes import WordPrototypes  # noqa: E402
from genaffect_jax.expressions.space import EncoderSpace, ExpressionSpace, UnitSpace  # noqa: E402
from genaffect_jax.expressions.vocabulary import vocabulary  # noqa: E402
from genaffect_jax.inference.noise_ids import noise_ids_of  # noqa: E402
from genaffect_jax.interop.torch import genaffect_expressions  # noqa: E402
from genaffect_jax.interop.torch.expressions_folder import read_expressions, write_expressions  # noqa: E402
from genaffect_jax.interop.torch.genaffect_expressions import GenAffectExpressions  # noqa: E402

TEXT = TextConfig(template="a {word} face, {word}", plain="a face", negative="blurry")
ENCODER_WIDTH = 5

Reader = Callable[[str], np.ndarray]
REFUSED = "refused"


def image_reader(width: int) -> Reader:
    """Another vector for every file name; some lie outside the channels' ranges."""

    def read(file: str) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(file.encode())).normal(0, 1, width).astype(np.float32)

    return read


def ours(text: str, space: ExpressionSpace) -> object:
    try:
        found = parse_expressions(text, space)
    except ExpressionError:
        return REFUSED
    return [(e.name, e.vector.dtype, e.vector.tobytes(), e.word) for e in found], noise_ids_of(found).tolist()


def theirs(text: str, exported: GenAffectExpressions, read: Reader | None) -> object:
    try:
        found = exported.parse(text, read)
    except ValueError:
        return REFUSED
    return [(e.name, e.vector.dtype, e.vector.tobytes(), e.word) for e in found], exported.noise_ids(found)


def prompt_table(dtype: type = np.float32) -> PromptTable:
    rng = np.random.default_rng(0)
    prompts = all_prompts(TEXT)
    tokens, pooled = rng.standard_normal((len(prompts), 4, 3)), rng.standard_normal((len(prompts), 2))
    return PromptTable(prompts, tokens.astype(dtype), pooled.astype(dtype), TEXT.template, "some encoders", 77)


def word_prototypes(*without: str) -> WordPrototypes:
    rng = np.random.default_rng(1)
    words = [word for word in ("neutral", *vocabulary()) if word not in without]
    vectors = {word: rng.normal(0, 3, ENCODER_WIDTH).astype(np.float32) for word in words}
    return WordPrototypes(vectors, dict.fromkeys(words, 7), "some_encoder", "0123abcd")


def encoder_space(prototypes: WordPrototypes) -> EncoderSpace:
    return EncoderSpace(prototypes.encoder, prototypes.vectors, image_reader(ENCODER_WIDTH))


def export(folder: Path, prompts: PromptTable | None = None, prototypes: WordPrototypes | None = None) -> Path:
    write_expressions(folder, TEXT, prompts, prototypes)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> GenAffectExpressions:
    return GenAffectExpressions.from_pretrained(export(tmp_path_factory.mktemp("units") / "expressions"))


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_a_request_gives_the_same_expressions(text, exported):
    expected = ours(text, UnitSpace(image_reader(WIDTH)))
    assert expected != REFUSED
    assert theirs(text, exported, image_reader(WIDTH)) == expected


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_a_mistake_is_refused_and_named(text, exported):
    assert ours(text, UnitSpace(image_reader(WIDTH))) == REFUSED
    with pytest.raises(ValueError, match="expression '") as error:
        exported.parse(text, image_reader(WIDTH))
    assert NOT_UNDERSTOOD[text] in str(error.value)


def test_image_files_are_read_as_written_and_refused_without_a_reader(exported):
    asked = []
    exported.parse(
        'joy, Sets/Anna-1.PNG:0.5; "my face.png", b.jpg + fear', lambda f: asked.append(f) or np.zeros(WIDTH)
    )
    assert asked == ["Sets/Anna-1.PNG", "my face.png", "b.jpg"]
    with pytest.raises(ValueError, match=r"face\.png"):
        exported.parse("face.png")


def random_number(rng: random.Random, highest: float) -> str:
    value = rng.choice([0, 1, highest, rng.uniform(0, highest), round(rng.uniform(0, highest), 1)])
    return rng.choice(["", "", "", "+"]) + rng.choice([repr(value), repr(value), f"{value:.3f}", f"{value:.1e}"])


def random_term(rng: random.Random) -> str:
    if rng.random() < 0.3:
        names = rng.sample([*CHANNELS, *(f"AU{unit}" for unit in SIDED_UNITS)], rng.randint(1, 3))
        signs = [rng.choice(["", "-"]) if name in DEGREES else "" for name in names]
        numbers = [random_number(rng, 1.0).lstrip("+") for _ in names]
        return rng.choice([",", " , "]).join(f"{n}={s}{v}" for n, s, v in zip(names, signs, numbers, strict=True))
    face = rng.choice([*vocabulary(), "neutral"])
    if rng.random() < 0.15:
        face = rng.choice(["a.png", "b/Ä-1.JPEG", '"a b"', '"a.png"', "0.5.gif", '"x,y=1.png"'])
    return random_weight(rng, face)


def random_weight(rng: random.Random, face: str) -> str:
    weight, space = random_number(rng, 2.0), rng.choice(["", " "])
    return rng.choice([face, f"{weight}{space}*{face}", f"{face}{space}:{weight}"])


def random_request(rng: random.Random) -> str:
    items = []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.2:
            word = vocabulary()[rng.choice([*vocabulary()])]
            group = rng.choice(
                ["all", f"{word.cluster}/*", f"{word.subcluster} /*", f"{word.cluster}/{word.subcluster}/*"]
            )
            items.append(random_weight(rng, group))
        else:
            items.append(rng.choice(["+", " + ", " +"]).join(random_term(rng) for _ in range(rng.randint(1, 3))))
    text = rng.choice([",", ";", " ; ", ", "]).join(items)
    return rng.choice([text, text, text.upper() if '"' not in text else text, f" {text}\n"])


PIECES = [
    "joy",
    "fear",
    "zest",
    "neutral",
    "all",
    "AU12",
    "au6l",
    "head_yaw",
    "a.png",
    '"b c"',
    "0.5",
    "1",
    "-1",
    "1e-1",
]
MARKS = [*'=:*+,;/ "', " ", " ", "+", ",", "*", ":"]
CHARACTERS = [*'  \t=:*+,;/".-0129eELRx_', ""]


def mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(CHARACTERS) + text[at + rng.randint(0, 1) :]
    return text


def soup(rng: random.Random) -> str:
    """Names, numbers and marks, most of them in turns."""
    return "".join(rng.choice((PIECES, MARKS)[(i + (rng.random() < 0.1)) % 2]) for i in range(rng.randint(1, 8)))


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_and_their_mutations_are_the_same_or_both_refused(seed, exported):
    rng = random.Random(seed)
    read = image_reader(WIDTH)
    space = UnitSpace(read)
    texts = {"requests": [random_request(rng) for _ in range(800)], "soups": [soup(rng) for _ in range(800)]}
    texts["mutations"] = [mutated(rng, text) for text in texts["requests"]]
    for kind, (least, most) in {"requests": (0, 100), "mutations": (200, 750), "soups": (200, 750)}.items():
        results = [ours(text, space) for text in texts[kind]]
        assert least <= sum(result == REFUSED for result in results) <= most, kind  # both sides are tested
        for text, expected in zip(texts[kind], results, strict=True):
            assert theirs(text, exported, read) == expected, text


@pytest.mark.parametrize("without", [(), ("fear", "relief"), ("neutral",)], ids=["all", "not_all", "no_neutral"])
def test_words_and_images_of_an_encoder_give_the_same_vectors(without, tmp_path):
    prototypes = word_prototypes(*without)
    space, read = encoder_space(prototypes), image_reader(ENCODER_WIDTH)
    exported = GenAffectExpressions.from_pretrained(export(tmp_path / "expressions", prototypes=prototypes))
    rng = random.Random(0)
    texts = [*UNDERSTOOD, *NOT_UNDERSTOOD, *(random_request(rng) for _ in range(1000))]
    texts += ["0.5*joy + 0.5*anger", "0.3*joy + 0.7*a.png", "joy:0.3", "0.1*joy + 0.2*joy + 0.7*joy", "fear", "joy/*"]
    results = [ours(text, space) for text in texts]
    assert 100 < sum(result == REFUSED for result in results) < len(texts) - 100
    for text, expected in zip(texts, results, strict=True):
        assert theirs(text, exported, read) == expected, text


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_expressions_get_the_rows_of_their_prompts(dtype, tmp_path):
    table = prompt_table(dtype)
    exported = GenAffectExpressions.from_pretrained(export(tmp_path / "expressions", table))
    text = "all, neutral:0.5, joy:0, joy + head_yaw=1, joy + AU6=1, AU1=1, 0.5*joy + fear"
    found = exported.parse(text)
    prompts = [prompt_for(e, TEXT) for e in parse_expressions(text)]
    for negative, expected in ((False, prompts), (True, [TEXT.negative] * len(found))):
        rows = table.rows(expected)
        tokens, pooled = exported.embed(found, negative=negative)
        np.testing.assert_array_equal(tokens.numpy(), table.tokens[rows].astype(np.float32))
        np.testing.assert_array_equal(pooled.numpy(), table.pooled[rows].astype(np.float32))
    assert [part.shape[0] for part in exported.embed([])] == [0, 0]


def test_a_model_without_prompts_has_no_embeddings(exported):
    assert exported.embed(exported.parse("joy")) is None
    assert exported.embed(exported.parse("joy"), negative=True) is None


def test_a_prompt_without_embeddings_is_refused_by_its_text(tmp_path):
    table = prompt_table()
    fewer = dataclasses.replace(table, prompts=table.prompts[:-1], tokens=table.tokens[:-1], pooled=table.pooled[:-1])
    exported = GenAffectExpressions.from_pretrained(export(tmp_path / "expressions", fewer))
    last = list(vocabulary())[-1]
    with pytest.raises(ValueError, match=f"a {last} face"):
        exported.embed(exported.parse(last))


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("prompts", [True, False], ids=["prompts", "no_prompts"])
@pytest.mark.parametrize("space", ["units", "encoder"])
def test_a_saved_copy_is_the_same_model_here_and_there(space, prompts, dtype, low_memory, tmp_path):
    table = prompt_table(np.dtype(dtype).type) if prompts else None
    prototypes = word_prototypes("fear") if space == "encoder" else None
    first = GenAffectExpressions.from_pretrained(
        export(tmp_path / "first", table, prototypes),
        torch_dtype=getattr(torch, dtype),
        low_cpu_mem_usage=low_memory,
    )
    assert first.prompt_embeds.dtype == first.pooled_prompt_embeds.dtype == getattr(torch, dtype)
    first.save_pretrained(tmp_path / "second")
    back = read_expressions(tmp_path / "second")
    assert back.text == TEXT
    write_expressions(tmp_path / "third", back.text, back.prompts, back.prototypes)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "third" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    second = GenAffectExpressions.from_pretrained(tmp_path / "second", torch_dtype=getattr(torch, dtype))
    found = first.parse("joy:0.3, love/*, 0.5*anger + 0.6*hate")
    for a, b in zip(found, second.parse("joy:0.3, love/*, 0.5*anger + 0.6*hate"), strict=True):
        assert (a.name, a.word, a.vector.tobytes()) == (b.name, b.word, b.vector.tobytes())
    if prompts:
        for a, b in zip(first.embed(found), second.embed(found), strict=True):
            assert torch.equal(a, b)


SCRIPT = """
import json, sys
for name in ("jax", "jaxlib", "flax", "genaffect_jax"):
    sys.modules[name] = None
from genaffect_expressions import GenAffectExpressions
model = GenAffectExpressions.from_pretrained("expressions")
found = model.parse(sys.argv[1])
tokens, pooled = model.embed(found)
print(json.dumps([[e.name, e.vector.tobytes().hex(), e.word] for e in found]))
print(json.dumps([model.noise_ids(found), tokens.tolist(), pooled.tolist()]))
"""


def test_the_file_alone_works_without_jax_and_this_package(tmp_path):
    table = prompt_table()
    export(tmp_path / "expressions", table)
    shutil.copy(genaffect_expressions.__file__, tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    text = "zest/*:0.5, joy + AU43L=1; 0.3*joy + 0.7*fear"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "script.py", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    expressions, (ids, tokens, pooled) = map(json.loads, result.stdout.splitlines()[-2:])
    expected = parse_expressions(text)
    rows = table.rows([prompt_for(e, TEXT) for e in expected])
    assert expressions == [[e.name, e.vector.tobytes().hex(), e.word] for e in expected]
    assert ids == noise_ids_of(expected).tolist()
    np.testing.assert_array_equal(np.array(tokens, np.float32), table.tokens[rows])
    np.testing.assert_array_equal(np.array(pooled, np.float32), table.pooled[rows])
