"""Where an expression comes from beside words and units: exemplar images, and the word prototypes of an encoder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from genaffect_jax.errors import DataError, ExpressionError
from genaffect_jax.expressions.action_units import INDEX, expression_vector
from genaffect_jax.expressions.grammar import check_expressions, parse_expression, parse_expressions
from genaffect_jax.expressions.prototypes import WordPrototypes
from genaffect_jax.expressions.space import EncoderSpace, UnitSpace
from genaffect_jax.expressions.vocabulary import vocabulary

FACE = expression_vector({"AU12": 0.6, "AU26": 0.9, "head_yaw": -0.5})
UNITS = UnitSpace(lambda file: FACE)
WORDS = {
    "neutral": np.array([1.0, 0.0, -2.0], np.float32),
    "joy": np.array([3.0, 1.0, 0.0], np.float32),
    "fear": np.array([0.0, -4.0, 5.0], np.float32),
}
ENCODED = EncoderSpace("some_encoder", WORDS, lambda file: np.array([2.0, 2.0, 2.0], np.float32))


@pytest.mark.parametrize(
    ("text", "name", "slug"),
    [
        ("face.png", "face.png", "face"),
        ("a/b c.png", None, None),  # a space needs quotes
        ('"a/b c.png"', '"a/b c.png"', "b-c"),
        ("/tmp/x-1/Anna.JPEG:1.3", "/tmp/x-1/Anna.JPEG:1.3", "anna-1p3"),
        ("0.5*../face.webp", "../face.webp:0.5", "face-0p5"),
        ('"no suffix"', '"no suffix"', "no-suffix"),
        ('"face.png"', "face.png", "face"),
        ("face.png+0.4*fear", "face.png + 0.4*fear", "face-plus-0p4-fear"),
    ],
)
def test_an_image_is_written_as_a_path_and_its_name_reads_back(text, name, slug):
    if name is None:
        with pytest.raises(ExpressionError):
            parse_expressions(text, UNITS)
        return
    (expression,) = parse_expressions(text, UNITS)
    assert (expression.name, expression.slug) == (name, slug)
    assert expression.word is None
    (again,) = parse_expressions(expression.name, UNITS)
    assert again.name == name
    np.testing.assert_array_equal(again.vector, expression.vector)


def test_the_file_is_asked_for_as_written_and_its_case_is_kept():
    asked = []
    space = UnitSpace(lambda file: asked.append(file) or FACE)
    found = parse_expressions('joy, Sets/Anna-1.PNG:0.5; "my face.png", AU6=0.5,AU12=0.9, b.jpg', space)
    assert asked == ["Sets/Anna-1.PNG", "my face.png", "b.jpg"]
    assert [e.provenance for e in found] == ["published", "exemplar", "exemplar", "channels", "exemplar"]


def test_a_weight_exaggerates_or_softens_an_exemplar_within_the_channels_ranges():
    (half,), (more,) = parse_expressions("f.png:0.5", UNITS), parse_expressions("f.png:1.3", UNITS)
    np.testing.assert_allclose(half.vector, 0.5 * FACE, atol=1e-6)
    assert more.vector[INDEX["AU12L"]] == pytest.approx(0.78)
    assert more.vector[INDEX["AU26"]] == 1.0
    assert more.vector[INDEX["head_yaw"]] == pytest.approx(-0.65)


def test_exemplars_blend_with_words_and_channels():
    (found,) = parse_expressions("0.5*f.png + 0.4*joy + head_yaw=0.2", UNITS)
    expected = 0.5 * FACE + 0.4 * vocabulary()["joy"].vector
    expected[INDEX["head_yaw"]] = 0.2
    np.testing.assert_allclose(found.vector, expected, atol=1e-6)
    assert found.provenance == "blend"


def test_an_image_without_an_encoder_is_refused_also_as_a_label():
    with pytest.raises(ExpressionError, match=r"'face\.png': an image needs an expression encoder"):
        parse_expression("face.png")


def test_what_needs_no_model_is_checked_before_one_is_loaded(tmp_path):
    (tmp_path / "a.png").touch()
    check_expressions(f"joy, {tmp_path}/a.png:1.3, all, AU12=0.5")
    for text, message in (
        (f"{tmp_path}/b.png", "b.png': no such image file"),
        ("joyy", "did you mean 'joy'"),
        (f"{tmp_path}/a.png:3", "weight 3: must be a number from 0 to 2"),
    ):
        with pytest.raises(ExpressionError, match=re.escape(message)):
            check_expressions(text)


@pytest.mark.parametrize(
    ("text", "vector"),
    [
        ("joy", [3, 1, 0]),
        ("neutral", [1, 0, -2]),
        ("joy:0.5", [2, 0.5, -1]),
        ("joy:2", [5, 2, 2]),
        ("0.5*joy + 0.5*fear", [1.5, -1.5, 2.5]),
        ("0.5*joy + 0.25*f.png", [2.25, 1, 0]),
        ("f.png", [2, 2, 2]),
        ("joy:0", [1, 0, -2]),
    ],
)
def test_an_encoders_words_and_images_are_weighed_from_the_neutral_face(text, vector):
    (found,) = parse_expressions(text, ENCODED)
    np.testing.assert_allclose(found.vector, vector, atol=1e-6)
    assert found.provenance == ("exemplar" if text == "f.png" else "blend" if "+" in text else "prototype")


def test_a_word_without_a_prototype_is_named_with_the_known_words():
    with pytest.raises(ExpressionError, match=r"'pride': the training .* it knows fear, joy, neutral"):
        parse_expressions("joy, pride", ENCODED)
    with pytest.raises(ExpressionError, match="vectors of some_encoder, which has no action units"):
        parse_expressions("joy + AU12=0.5", ENCODED)
    without = EncoderSpace("some_encoder", {"joy": WORDS["joy"], "fear": WORDS["fear"]})
    (found,) = parse_expressions("0.3*joy + 0.7*fear", without)  # weights that add up to 1 need no neutral face
    np.testing.assert_allclose(found.vector, 0.3 * WORDS["joy"] + 0.7 * WORDS["fear"], atol=1e-6)
    with pytest.raises(ExpressionError, match=r"'neutral': the training .* knows fear, joy"):
        parse_expressions("joy:0.5", without)


def fitted(labels: str, vectors: list) -> WordPrototypes:
    return WordPrototypes.fit(
        parse_expressions(labels), np.array(vectors, np.float32), encoder="some_encoder", encoder_checksum="abc"
    )


def test_a_words_vector_is_the_mean_of_its_images():
    prototypes = fitted(
        "joy; joy + head_yaw=0.3; fear; joy + AU12=1; 0.5*joy + 0.5*fear; AU1=1",
        [[1, 0], [3, 1], [9, 9], [50, 50], [50, 50], [50, 50]],
    )
    assert prototypes.images == {"fear": 1, "joy": 2}
    np.testing.assert_array_equal(prototypes.vectors["joy"], [2, 0.5])


def test_weaker_images_count_by_their_weight_from_the_neutral_face():
    neutral, joy = np.array([1.0, -1.0]), np.array([3.0, 5.0])
    exact = [neutral + w * (joy - neutral) for w in (0.5, 0.8, 1.0)]
    prototypes = fitted("neutral; joy:0.5; joy:0.8; joy", [neutral, *exact])
    np.testing.assert_allclose(prototypes.vectors["joy"], joy, atol=1e-6)
    # Without neutral images only those of full weight say where the word lies.
    assert fitted("joy:0.5; joy; fear:0.5", exact).images == {"joy": 1}


def test_images_without_a_single_word_make_no_prototypes():
    with pytest.raises(DataError, match="none of 2 images shows a single word"):
        fitted("AU1=1; 0.5*joy + 0.5*fear", [[1, 0], [3, 1]])


def test_prototypes_are_read_as_they_were_written_and_another_encoders_refused(tmp_path: Path):
    prototypes = fitted("joy; fear; neutral", [[1, 0], [3, 1], [0.1, 0.2]])
    prototypes.write(tmp_path / "prototypes.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["prototypes.safetensors"]
    found = WordPrototypes.read(tmp_path / "prototypes.safetensors")
    assert (found.images, found.encoder, found.encoder_checksum) == (prototypes.images, "some_encoder", "abc")
    assert {w: v.tolist() for w, v in found.vectors.items()} == {w: v.tolist() for w, v in prototypes.vectors.items()}
    found.check("some_encoder", "abc")
    with pytest.raises(DataError, match=r"made with some_encoder \(abc\), the model has other \(def\)"):
        found.check("other", "def")
    content = bytearray((tmp_path / "prototypes.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "prototypes.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"prototypes\.safetensors: damaged"):
        WordPrototypes.read(tmp_path / "prototypes.safetensors")
    with pytest.raises(DataError, match="no such file"):
        WordPrototypes.read(tmp_path / "none.safetensors")
