"""The procedural source: what its images are, and that they stay what they are."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from genaffect_jax.checkpoints.run_dir import RunDir
from genaffect_jax.config import DataConfig
from genaffect_jax.data.sources.base import Source
from genaffect_jax.data.sources.open import open_source
from genaffect_jax.data.sources.procedural import ProceduralSource, sample_expression
from genaffect_jax.expressions.action_units import CHANNELS, DEGREES, INDEX, MEDIAN_UNITS, SIDED_UNITS
from genaffect_jax.expressions.grammar import parse_expression
from genaffect_jax.expressions.vocabulary import vocabulary


@pytest.fixture(scope="module")
def source() -> ProceduralSource:
    return ProceduralSource(image_size=32, identities=40, expressions_per_identity=8)


def test_every_label_gives_exactly_the_images_vector(source: ProceduralSource) -> None:
    for image in source.examples:
        np.testing.assert_array_equal(parse_expression(image.label).vector, image.expression)


def test_every_person_has_different_expressions_and_the_first_is_near_neutral(source: ProceduralSource) -> None:
    units = [i for name, i in INDEX.items() if name not in DEGREES]
    for person in range(40):
        mine = source.examples[8 * person : 8 * person + 8]
        assert {p.identity for p in mine} == {f"avatar{person:06d}"}
        assert len({p.expression_key for p in mine}) == 8
        assert not mine[0].expression[units].any()
        assert np.abs(mine[0].expression).max() <= 0.2


def test_more_people_or_expressions_leave_the_first_images_as_they_are(source: ProceduralSource) -> None:
    larger = ProceduralSource(image_size=32, identities=41, expressions_per_identity=9)
    for index in (0, 7, 8 * 39 + 3):
        person, place = divmod(index, 8)
        same = 9 * person + place
        assert larger.examples[same].label == source.examples[index].label
        np.testing.assert_array_equal(larger.load(same), source.load(index))


def test_an_image_shows_its_person_and_its_expression(source: ProceduralSource) -> None:
    first = source.load(1)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(source.load(1), first)
    assert (source.load(2) != first).any()  # another expression
    assert (source.load(8) != source.load(0)).mean() > 0.2  # another person


def test_expressions_cover_words_blends_and_all_action_units_gaze_and_head() -> None:
    rng = np.random.default_rng(0)
    texts = [sample_expression(rng) for _ in range(3000)]
    vectors = np.stack([parse_expression(text).vector for text in texts])
    words = set(vocabulary())
    used = [words & set(re.findall(r"[a-z]+", text)) for text in texts]
    kinds = Counter(len(found) for found in used)
    assert kinds[1] == pytest.approx(1200, abs=120)
    assert kinds[2] == pytest.approx(600, abs=90)
    assert kinds[0] == pytest.approx(1200, abs=120)
    assert set().union(*used) == words
    only_units = vectors[[not found for found in used]]
    for unit in SIDED_UNITS:
        left, right = only_units[:, INDEX[f"AU{unit}L"]], only_units[:, INDEX[f"AU{unit}R"]]
        assert ((left > 0) & (right == 0)).any()
        assert ((left == 0) & (right > 0)).any()
        assert ((left > 0) & (left == right)).any()
    for unit in MEDIAN_UNITS:
        assert only_units[:, INDEX[f"AU{unit}"]].max() > 0.8
    for channel in DEGREES:
        values = only_units[:, INDEX[channel]]
        assert values.min() < -0.2
        assert values.max() > 0.2
        assert np.abs(values).max() <= 0.6
    assert vectors.shape[1] == len(CHANNELS)


def test_a_pickled_source_loads_the_same_images(source: ProceduralSource) -> None:
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(copy.load(5), source.load(5))


def test_the_fingerprint_follows_size_and_numbers(source: ProceduralSource) -> None:
    others = [ProceduralSource(16, 40, 8), ProceduralSource(32, 39, 8), ProceduralSource(32, 40, 7)]
    assert len({s.fingerprint() for s in (source, *others)}) == 4


def test_open_source_makes_what_the_configuration_says(tmp_path: Path) -> None:
    config = DataConfig(image_size=32, identities=3, expressions_per_identity=4)
    source = open_source(config, RunDir(tmp_path))
    assert isinstance(source, Source)
    assert "12 images of 3 people" in source.describe()
    assert source.load(0).shape == (32, 32, 3)


def test_sources_load_without_jax() -> None:
    # Worker processes import the sources; jax there would take seconds and could claim the accelerator.
    code = """import sys, genaffect_jax.data.sources.open, genaffect_jax.data.cached_features
sys.exit('jax' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
