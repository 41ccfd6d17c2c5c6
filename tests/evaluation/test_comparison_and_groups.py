"""Differences between two reports, and groups of people, where the right answer is planted."""

import json

import numpy as np
import pytest

from genaffect_jax.errors import DataError
from genaffect_jax.evaluation.comparison import compare, read_report
from genaffect_jax.evaluation.groups import SMALLEST_GROUP, worst_group
from genaffect_jax.evaluation.procedural_people import attributes

PEOPLE = 32
KNOWN = [attributes(person) for person in range(64)]


def report(values, people=PEOPLE, evaluators="a"):
    values = [None if np.isnan(v) else float(v) for v in values]
    mean = float(np.mean([v for v in values if v is not None]))
    return {
        "settings": {"protocol": {"people": people}, "evaluators": {"identity": evaluators}},
        "figures": {"identity": {"value": {"value": mean}, "by_person": values}, "identity_frechet": {"by_person": []}},
    }


def normal(seed, count=PEOPLE):
    return np.random.default_rng(seed).standard_normal(count)


def test_a_small_gain_of_every_person_is_beyond_noise_and_pairs_alone_can_show_it():
    before = 5 * normal(0)
    after = before + 0.3 + 0.1 * normal(1)
    (found,) = compare(report(after), report(before)).values()
    assert found.paired
    assert found.beyond_noise
    assert found.difference.value == pytest.approx(found.here - found.there)
    unpaired = compare(report(after), report(before, people=99))["identity"]
    assert not unpaired.paired
    assert not unpaired.beyond_noise
    assert unpaired.difference.value == pytest.approx(found.difference.value)


def test_equal_reports_and_noise_are_not_beyond_noise():
    same = compare(report(normal(0)), report(normal(0)))["identity"]
    assert (same.difference.value, same.beyond_noise) == (0, False)
    beyond = [compare(report(normal(2 * i)), report(normal(2 * i + 1)))["identity"].beyond_noise for i in range(40)]
    assert sum(beyond) <= 6


def test_people_of_different_folders_are_not_paired():
    first, second, rendered = (report(normal(i)) for i in range(3))
    for one, fingerprint in ((first, "a"), (second, "b")):
        one["settings"]["data"] = {"source": "folder", "fingerprint": fingerprint, "left_out": {}}
    assert compare(first, first)["identity"].paired
    assert not compare(first, second)["identity"].paired
    assert not compare(first, rendered)["identity"].paired
    left_out = json.loads(json.dumps(first))
    left_out["settings"]["data"]["left_out"] = {"anna": "the model was trained on them"}
    assert not compare(first, left_out)["identity"].paired


def test_people_without_a_figure_are_left_out():
    values = normal(0)
    values[3] = np.nan
    assert compare(report(values), report(normal(0)))["identity"].difference.value == pytest.approx(0)


def test_reports_of_other_evaluators_or_damaged_ones_are_refused(tmp_path):
    with pytest.raises(DataError, match="of other evaluators"):
        compare(report(normal(0)), report(normal(0), evaluators="b"))
    with pytest.raises(DataError, match=r"report\.json: not readable as the report of an evaluation"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(DataError, match=r"KeyError: 'protocol'"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report(normal(0))))
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == report(normal(0))


def test_figures_that_are_measured_on_request_are_compared_only_where_they_were_measured_alike():
    first, second = report(normal(0)), report(normal(1))
    for one in (first, second):
        one["figures"] |= dict.fromkeys(("clip_score", "seed_pixels"), one["figures"]["identity"])
    assert set(compare(first, second)) == {"identity", "clip_score", "seed_pixels"}
    first["settings"] |= {"clip": "CLIPModel a", "diversity": {"seeds": 4}}
    second["settings"] |= {"clip": "CLIPModel b", "diversity": {"seeds": 4}}
    assert set(compare(first, second)) == {"identity", "seed_pixels"}
    second["settings"]["clip"], second["settings"]["diversity"] = "CLIPModel a", {"seeds": 5}
    assert set(compare(first, second)) == {"identity", "clip_score"}


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_planted_bad_group_is_the_worst_group(higher_is_better):
    worse = np.array([known["glasses"] == "yes" for known in KNOWN])
    assert SMALLEST_GROUP <= worse.sum() <= 60
    values = 0.02 * normal(0, 64) + np.where(worse, 0.3, 0.0) * (-1 if higher_is_better else 1)
    found = worst_group(values, KNOWN, higher_is_better)
    assert (found.group, found.people) == ("glasses: yes", int(worse.sum()))
    assert found.difference.excludes_zero
    assert (found.difference.value < 0) == higher_is_better


def test_without_groups_of_some_people_there_is_no_worst_group():
    assert worst_group(normal(0, 5), KNOWN[:5], True) is None
    missing = normal(0, 64)
    missing[:60] = np.nan
    assert worst_group(missing, KNOWN, True) is None
    assert worst_group(normal(0, 64), [{}] * 64, True) is None
