"""The expression grammar: what users may write, what they get, and how they are told when it is wrong."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaffect_jax.expressions.action_units import (
    CHANNELS,
    DEGREES,
    INDEX,
    SIDED_UNITS,
    expression_vector,
    neutral,
    validate,
)
from genaffect_jax.expressions.grammar import ExpressionError, parse_expression, parse_expressions
from genaffect_jax.expressions.vocabulary import clusters, vocabulary

WORDS = tuple(vocabulary())
SETTABLE = (*CHANNELS, *(f"AU{unit}" for unit in SIDED_UNITS))

weights = st.floats(0.0, 2.0)
words = st.sampled_from((*WORDS, "neutral"))
terms = st.one_of(words, st.builds("{}*{}".format, weights, words), st.builds("{}:{}".format, words, weights))


@st.composite
def settings_text(draw: st.DrawFn) -> str:
    names = draw(st.lists(st.sampled_from(SETTABLE), min_size=1, max_size=5, unique=True))
    values = [draw(st.floats(-1.0 if name in DEGREES else 0.0, 1.0)) for name in names]
    return ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))


@st.composite
def expression_text(draw: st.DrawFn) -> str:
    parts = draw(st.lists(terms, max_size=4))
    if not parts or draw(st.booleans()):
        parts.append(draw(settings_text()))
    return " + ".join(parts)


def names(text: str) -> list[str]:
    return [expression.name for expression in parse_expressions(text)]


@pytest.mark.parametrize("word", WORDS)
def test_every_word_gives_its_own_vector_in_any_case(word):
    for text in (word, word.upper(), f"  {word.title()} "):
        expression = parse_expression(text)
        np.testing.assert_array_equal(expression.vector, vocabulary()[word].vector)
        assert (expression.name, expression.slug) == (word, word)
        assert expression.provenance == vocabulary()[word].provenance


@given(expression_text())
def test_the_canonical_name_reads_back_as_the_same_expression(text):
    first = parse_expression(text)
    again = parse_expression(first.name)
    assert again.name == first.name
    assert again.slug == first.slug
    assert again.provenance == first.provenance
    np.testing.assert_array_equal(again.vector, first.vector)


@given(expression_text())
def test_every_result_is_a_valid_vector_and_a_safe_file_name(text):
    expression = parse_expression(text)
    validate(expression.vector)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", expression.slug)


@given(expression_text(), expression_text())
def test_different_expressions_have_different_slugs(a, b):
    first, second = parse_expression(a), parse_expression(b)
    assert (first.slug == second.slug) == (first.name == second.name)


@given(st.sampled_from(WORDS), st.sampled_from(WORDS), st.floats(0.0, 1.0))
def test_blends_are_linear(a, b, share):
    blend = parse_expression(f"{share}*{a} + {b}:{1 - share}").vector
    expected = share * vocabulary()[a].vector.astype(float) + (1 - share) * vocabulary()[b].vector
    np.testing.assert_allclose(blend, expected, atol=1e-6)


@given(st.sampled_from(WORDS), weights)
def test_a_weight_scales_and_an_exaggeration_is_clipped_to_the_range(word, weight):
    expected = np.clip(
        weight * vocabulary()[word].vector.astype(float), [-1.0 if c in DEGREES else 0.0 for c in CHANNELS], 1
    )
    np.testing.assert_allclose(parse_expression(f"{word}:{weight}").vector, expected, atol=1e-6)
    np.testing.assert_array_equal(
        parse_expression(f"{weight}*{word}").vector, parse_expression(f"{word}:{weight}").vector
    )


@given(settings_text())
def test_settings_give_exactly_the_channels_they_name(text):
    given_values = {name: float(value) for name, value in (item.split("=") for item in text.split(","))}
    both_sides_first = dict(sorted(given_values.items(), key=lambda item: item[0] in INDEX))
    np.testing.assert_array_equal(parse_expression(text).vector, expression_vector(both_sides_first))


names_and_numbers = ["joy", "ANGER", "zest", "all", "neutral", "au12", "AU12L", "AU99", "head_yaw", "0.5", "-1", "1e-2"]
pieces = st.sampled_from([*names_and_numbers, *"x3.=:*+/,; -+\t\u0660\u00df"])


@given(st.one_of(st.text(), st.lists(pieces, max_size=12).map("".join)))
def test_any_text_gives_valid_expressions_or_an_expression_error(text):
    try:
        expressions = parse_expressions(text)
    except ExpressionError:
        return
    assert expressions
    for expression in expressions:
        validate(expression.vector)


def test_a_very_long_number_is_refused_quickly():
    with pytest.raises(ExpressionError, match="cannot read"):
        parse_expression("9" * 200_000 + "x")


def test_consecutive_settings_are_one_expression_and_semicolons_always_separate():
    assert names("joy,AU6=0.5,AU12=0.9,anger") == ["joy", "AU6=0.5,AU12=0.9", "anger"]
    assert names("AU6=0.5;AU12=0.9") == ["AU6=0.5", "AU12=0.9"]
    assert names("joy; sadness ,anger") == ["joy", "sadness", "anger"]
    assert names("joy + AU43L=1, AU7R=0.2, fear") == ["joy + AU43L=1,AU7R=0.2", "fear"]


def test_a_setting_replaces_the_channel_of_the_blend():
    wink = parse_expression("joy + AU43L=1")
    expected = vocabulary()["joy"].vector.copy()
    expected[INDEX["AU43L"]] = 1.0
    np.testing.assert_array_equal(wink.vector, expected)
    assert wink.provenance == "blend"
    frozen_components = parse_expression("AU12=0.2 + joy").vector
    assert frozen_components[INDEX["AU12L"]] == frozen_components[INDEX["AU12R"]] == np.float32(0.2)


def test_one_sided_settings_win_over_both_sides_in_either_order():
    for text in ("AU12=0.2,AU12L=0.7", "AU12L=0.7,AU12=0.2"):
        vector = parse_expression(text).vector
        assert (vector[INDEX["AU12L"]], vector[INDEX["AU12R"]]) == (np.float32(0.7), np.float32(0.2))


def test_signed_channels_and_neutral():
    assert parse_expression("head_yaw=-0.3").vector[INDEX["head_yaw"]] == np.float32(-0.3)
    np.testing.assert_array_equal(parse_expression("neutral").vector, neutral())
    np.testing.assert_array_equal(parse_expression("0.5*joy + 0.5*neutral").vector, parse_expression("joy:0.5").vector)


def test_groups_expand_to_their_words_in_order():
    assert names("all") == list(WORDS)
    for cluster, members in clusters().items():
        assert names(f"{cluster}/*") == list(members)
    assert names("zest/*") == ["enthusiasm", "zeal", "zest", "excitement", "thrill", "exhilaration"]
    assert names("Joy / Relief/ *") == ["relief"]
    assert len(names("sadness/*")) == 37
    assert len(names("sadness/sadness/*")) == 12
    assert names("surprise/*:0.5,0.5*surprise/*") == ["amazement:0.5", "surprise:0.5", "astonishment:0.5"] * 2


def test_an_expression_asked_for_twice_comes_twice():
    assert names("joy,joy") == ["joy", "joy"]


def test_long_slugs_are_cut_and_stay_different():
    first = parse_expression(" + ".join(["exasperation:0.1"] * 12))
    second = parse_expression(" + ".join(["exasperation:0.1"] * 13))
    assert len(first.slug) == len(second.slug) == 100
    assert first.slug != second.slug


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("joyy", "expression 'joyy': unknown word; did you mean 'joy'?"),
        ("sadness,hapiness", "expression 'hapiness': unknown word; did you mean 'happiness'?"),
        ("happy", "expression 'happy': unknown word; did you mean 'happiness'?"),
        ("hed_yaw", "expression 'hed_yaw': unknown word; did you mean 'head_yaw'?"),
        ("sadnes/*", "expression 'sadnes/*': unknown cluster; did you mean 'sadness'?"),
        ("joy/zst/*", "expression 'joy/zst/*': unknown cluster; did you mean 'joy/zest'?"),
        ("joy/zest", "a group of words is written 'joy/*' or 'joy/zest/*'"),
        ("AU99=1", "expression 'AU99': unknown channel; allowed: AU1 AU2"),
        ("AU17L=1", "expression 'AU17L': unknown channel; allowed:"),
        ("joy + AU99", "expression 'AU99': unknown channel; allowed:"),
        ("AU12", "channel 'AU12' needs a value, such as 'AU12=0.5'"),
        ("joy=0.5", "the strength of a word is written 'joy:0.5'"),
        ("joy:2.5", "weight 2.5: must be a number from 0 to 2"),
        ("-1*joy", "weight -1: must be a number from 0 to 2"),
        ("joy:nan", "weight: a number from 0 to 2 was expected, found 'nan'"),
        ("joy:1e999", "weight 1e999: must be a number from 0 to 2"),
        ("AU6=1.01", "AU6 1.01: must be a number from 0 to 1"),
        ("gaze_yaw=-1.5", "gaze_yaw -1.5: must be a number from -1 to 1"),
        ("0.5*joy:0.5", "two weights for one word"),
        ("0.5", "'0.5' is no expression; a weight is written '0.5*joy' or 'joy:0.5'"),
        ("joy sadness", "unexpected 'sadness'; '+' adds words, ',' or ';' separates expressions"),
        ("joy - anger", "cannot read '-'"),
        ("joy,,anger", "a word, a channel or an image was expected, found ','"),
        ("joy,", "a word, a channel or an image was expected, found 'end of the text'"),
        ("all + joy", "cannot be part of a blend"),
        ("joy + fear/*", "cannot be part of a blend"),
        ("AU6=0.5,AU6=0.7", "'AU6' is set twice; ';' separates expressions"),
        (" ", "expression '': empty"),
    ],
)
def test_a_mistake_is_named_and_the_way_out_shown(text, message):
    with pytest.raises(ExpressionError, match=re.escape(message)):
        parse_expressions(text)


def test_one_expression_means_one():
    with pytest.raises(ExpressionError, match=r"expression 'joy/\*': stands for 33 expressions, expected one"):
        parse_expression("joy/*")


def test_texts_of_the_grammars_own_tokens_are_parsed_or_refused_in_one_line(load_benchmark) -> None:
    outcomes, faults = load_benchmark("fuzz_expressions").run(1500, seed=1)
    assert faults == []
    assert min(outcomes["parsed"], outcomes["refused"]) > 150
