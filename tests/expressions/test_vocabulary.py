"""The vocabulary: 135 words, each with its own face, and an honest record of where it comes from."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from genaffect_jax.expressions import derive, published
from genaffect_jax.expressions.action_units import INDEX, expression_vector, neutral, validate
from genaffect_jax.expressions.vocabulary import MINIMUM_DISTANCE, clusters, vocabulary


def channel(word: str, name: str) -> float:
    return float(vocabulary()[word].vector[INDEX[name]])


def test_the_committed_file_is_what_the_rule_gives():
    assert derive.WORDS_FILE.read_text(encoding="utf-8") == derive.render()


def test_writing_replaces_the_file_whole_and_a_failure_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "words.json"
    derive.write(target)
    assert target.read_bytes() == derive.WORDS_FILE.read_bytes()

    target.write_text("old")
    monkeypatch.setattr(derive, "render", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        derive.write(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_shavers_135_words_in_six_clusters():
    sizes = {name: len(words) for name, words in clusters().items()}
    assert sizes == {"love": 16, "joy": 33, "surprise": 3, "anger": 29, "sadness": 37, "fear": 17}
    assert list(vocabulary()) == [word for words in clusters().values() for word in words]
    assert sum(sizes.values()) == len(vocabulary()) == 135


def test_every_cluster_and_subcluster_name_is_a_word():
    """The grammar rests on it: a bare name is always the word, so no name is lost."""
    assert {w.cluster for w in vocabulary().values()} | {w.subcluster for w in vocabulary().values()} <= set(
        vocabulary()
    )


def test_exactly_18_words_are_published_and_each_names_a_cited_source():
    marked = {name for name, word in vocabulary().items() if word.provenance == "published"}
    assert marked == set(published.PATTERNS)
    assert len(marked) == 18
    for name in marked:
        assert all(source in vocabulary()[name].source for source in published.PATTERNS[name])
        assert set(published.PATTERNS[name]) <= set(published.CITATIONS)


def test_a_published_word_shows_only_units_its_sources_list():
    for name, sources in published.PATTERNS.items():
        listed = {unit for _, units in sources.values() for unit in published._votes(units)}
        postures = {published.POSTURE_UNITS[u][0] for u in listed if u in published.POSTURE_UNITS}
        for c, i in INDEX.items():
            if vocabulary()[name].vector[i]:
                assert c in postures or int(c.removeprefix("AU").rstrip("LR")) in listed, f"{name}: {c}"


def test_every_listed_unit_is_shown_left_out_or_dropped():
    records = {r["name"]: r for r in json.loads(derive.WORDS_FILE.read_text())["words"]}
    for name in published.PATTERNS:
        record = records[name]
        for text in record["agreement"]:
            unit = int(text.rstrip("LR"))
            shown = published.POSTURE_UNITS.get(unit, (f"AU{text}",))[0] in record["channels"]
            fates = (shown, unit in record["left_out"], unit in record["dropped"])
            assert sum(fates) == 1, f"{name}: AU{text}: shown, left out, dropped = {fates}"


def test_agreement_decides_how_strongly_a_unit_is_drawn():
    """AU4 is in all four sources of anger, AU23 in two and a variant of unknown share in a third."""
    pattern = published.combine("anger")
    assert pattern.channels["AU4L"] == pytest.approx(1.0)
    assert pattern.channels["AU23"] == pytest.approx((1 + 0.2 + 0 + 1) / 4)
    assert pattern.channels["AU7R"] == pytest.approx(0.75 * published.UNIT_SCALE[7])
    assert 10 in pattern.left_out  # 26 % of posers of one source


def test_published_head_and_eye_positions_become_signed_channels():
    assert channel("amusement", "head_pitch") > 0.3  # 53 head up
    assert channel("shame", "head_pitch") < -0.3  # 54 head down
    assert channel("shame", "gaze_pitch") < -0.3  # 64 eyes down
    assert channel("embarrassment", "head_yaw") < -0.2  # 52 turned to the person's right


def test_units_without_a_channel_are_reported_as_dropped():
    dropped = {name: word.dropped for name, word in vocabulary().items() if word.dropped}
    assert dropped == {"sadness": (11,), "sympathy": (57,)}


def test_pressed_and_parted_lips_never_meet():
    for name, word in vocabulary().items():
        overlap = min(word.vector[INDEX["AU24"]], word.vector[INDEX["AU25"]])
        assert overlap <= 0.3, f"{name}: lips pressed and parted at {overlap:g}"


def test_contempt_is_one_sided():
    assert channel("contempt", "AU14L") > 0.5
    assert channel("contempt", "AU14R") == 0


def test_no_two_words_look_alike_and_none_is_neutral():
    vectors = {"neutral": neutral()} | {name: word.vector for name, word in vocabulary().items()}
    for (a, va), (b, vb) in itertools.combinations(vectors.items(), 2):
        assert np.linalg.norm(va - vb) >= MINIMUM_DISTANCE, f"{a} and {b}"


def test_vectors_are_valid_and_cannot_be_changed_by_a_caller():
    for word in vocabulary().values():
        np.testing.assert_array_equal(validate(word.vector), word.vector)
        with pytest.raises(ValueError, match="read-only"):
            word.vector[0] = 1.0
    with pytest.raises(TypeError):
        vocabulary()["joy"] = vocabulary()["anger"]  # type: ignore[index]


def test_stronger_words_of_one_kind_are_stronger():
    """Distance from neutral grows along the ladders people agree on."""
    for ladder in (
        ("irritation", "anger", "rage"),
        ("gladness", "joy", "jubilation"),
        ("nervousness", "fear", "terror"),
    ):
        sizes = [float(np.linalg.norm(vocabulary()[word].vector)) for word in ladder]
        assert sizes == sorted(sizes), dict(zip(ladder, sizes, strict=True))


def test_a_derived_word_is_its_scaled_prototype_with_the_listed_changes():
    """gladness: 0.7 x (0.9 x joy) with AU1, AU7, AU25 and AU26 set."""
    joy = published.combine("joy").channels
    expected = {c: 0.7 * 0.9 * v for c, v in joy.items()} | {"AU1": 0.25, "AU7": 0.0, "AU25": 0.35, "AU26": 0.0}
    expected = {c: v for c, v in expected.items() if c not in ("AU7L", "AU7R")}
    np.testing.assert_allclose(vocabulary()["gladness"].vector, expression_vector(expected), atol=5.1e-4)


def test_a_change_to_an_unknown_channel_is_refused(monkeypatch):
    monkeypatch.setattr(derive, "TABLE", "[joy/cheerfulness]  joy x 1  | x\ngladness 1 11=.5 | x")
    with pytest.raises(ValueError, match=r"'11=\.5': no such expression channel"):
        derive.derive()


def test_a_published_word_cannot_be_changed_in_the_table(monkeypatch):
    monkeypatch.setattr(derive, "TABLE", "[joy/cheerfulness]  joy x 1  | x\njoy 1 12=.5 | x")
    with pytest.raises(ValueError, match="'joy' has a published pattern"):
        derive.derive()


def test_the_documentation_lists_each_published_word_as_the_data_has_it():
    text = (Path(__file__).parents[2] / "docs" / "guide" / "expressions.md").read_text(encoding="utf-8")
    for record in json.loads(derive.WORDS_FILE.read_text(encoding="utf-8"))["words"]:
        if record["provenance"] == "published":
            channels = " ".join(f"{name} {value:g}" for name, value in record["channels"].items())
            assert f"| {record['name']} | {record['source']} | {channels} |" in text
