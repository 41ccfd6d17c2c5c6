"""Suggestions for labels that the grammar does not know."""

import pytest

from genaffect_jax.errors import ExpressionError
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.expressions.labels import USUAL
from genaffect_jax.expressions.vocabulary import vocabulary


def message(text: str) -> str:
    with pytest.raises(ExpressionError) as error:
        parse_expression(text)
    return str(error.value)


@pytest.mark.parametrize("label", sorted(USUAL))
def test_every_usual_label_is_refused_with_a_text_that_the_grammar_reads(label: str) -> None:
    assert message(label) == f"expression '{label}': unknown word; did you mean '{USUAL[label]}'?"
    parse_expression(USUAL[label])


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("afraid", "fear"),
        ("fearful", "fear"),
        ("Happy", "happiness"),
        ("sad", "sadness"),
        ("ANGRY", "anger"),
        ("surprised", "surprise"),
        ("disgusted", "disgust"),
        ("calm", "neutral"),
        ("contemptuous", "contempt"),
        ("happily surprised", "0.5*happiness + 0.5*surprise"),
        ("suprised", "surprise"),
        ("jyo", "joy"),
        ("jooy", "joy"),
        ("sadnes", "sadness"),
        ("anher", "anger"),
    ],
)
def test_labels_of_usual_data_sets_and_slips_get_the_word_that_is_meant(label: str, text: str) -> None:
    assert message(label).endswith(f"unknown word; did you mean '{text}'?")


@pytest.mark.parametrize(
    ("label", "text"), [("very happy", "happiness:1.3"), ("slightly sad", "sadness:0.5"), ("very joy", "joy:1.3")]
)
def test_an_adverb_of_degree_is_answered_with_a_weight(label: str, text: str) -> None:
    assert message(label).endswith(f"; a strength is a weight, such as '{text}'")


@pytest.mark.parametrize(
    "label",
    [
        *("nan", "none", "unknown", "uncertain", "other", "tear", "year", "toy", "boy", "glue"),
        *("late", "live", "rave", "wink", "bored", "confused", "thoughtful", "hmm", "ok", "a"),
        *("contentious", "detective", "comma", "fine", "face", "person", "image", "label", "true", "false"),
        *("null", "test", "left", "right"),
    ],
)
def test_a_word_that_is_only_spelt_alike_is_not_suggested(label: str) -> None:
    assert "did you mean" not in message(label)


def test_no_usual_label_hides_a_word_of_the_grammar() -> None:
    assert not set(USUAL) & {*vocabulary(), "neutral", "all"}


def test_groups_are_suggested_for_groups() -> None:
    assert message("angry/*").endswith("did you mean 'anger'?")
    assert message("sadnes/*").endswith("did you mean 'sadness'?")
    assert "did you mean" not in message("happy/*")
