"""The page of the ablations: differences beyond noise are marked, costs stand beside them, and no file is missing."""

import re

from support.pages import Page, assert_needs_no_other_file

from genaffect_jax.evaluation.ablations import COLUMNS, Ablation
from genaffect_jax.evaluation.ablations_page import ablations_as_html
from genaffect_jax.evaluation.comparison import Difference
from genaffect_jax.metrics.bootstrap import Interval

NASTY = '<script>alert(1)</script> & "more"'
SETTINGS = {"model": NASTY, "protocol": {"people": 8}, "evaluators": {"identity": "reader"}}


def ablation(change, seconds=2.0, reach=0.1, columns=COLUMNS):
    found = Interval(change, change - reach, change + reach, 8, 0.95)
    return Ablation({name: Difference(0.5 + change, 0.5, found, True) for name in columns}, seconds)


ABLATIONS = {
    "plain": ablation(0.0, reach=0.0),
    "apart": ablation(0.25, seconds=3.0),
    "alike": ablation(0.05),
    NASTY: ablation(-0.25, seconds=None),
}


def rows(text):
    """The rows of the first table by their first cell."""
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    return {re.search(r">([^<]*)</th>", row)[1]: row for row in table.split("</tr>")[:-1]}


def test_the_page_needs_no_other_file_and_escapes_the_names():
    text = ablations_as_html(ABLATIONS, COLUMNS, SETTINGS)
    assert_needs_no_other_file(text)
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 6  # title, head, both tables, both plots
    assert all(svg["aria-label"] for svg in page.all("svg"))


def test_differences_beyond_noise_are_marked_by_their_direction_and_no_others():
    found = rows(ablations_as_html(ABLATIONS, COLUMNS, SETTINGS))
    assert "*" not in found["plain"] + found["alike"]
    assert "+0.050" in found["alike"]
    cells = dict(zip(COLUMNS, found["apart"].split("<td")[1:], strict=True))
    assert all("+0.250 *" in cell for cell in cells.values())
    assert 'class="better"' in cells["identity"]
    assert 'class="worse"' in cells["expression_error"]
    # Nearer to the ceiling is better, from either side: a sign says nothing.
    assert "better" not in cells["sharpness"]
    assert "worse" not in cells["sharpness"]


def test_marks_of_settings_within_noise_are_hollow():
    def filled(change):
        return ablations_as_html({"plain": ablation(0.0), "other": ablation(change)}, COLUMNS, SETTINGS).count(
            "fill: var(--paper)"
        )

    assert (filled(0.25), filled(0.05)) == (0, 2)


def test_each_cost_stands_beside_the_plain_one():
    text = ablations_as_html(ABLATIONS, COLUMNS, SETTINGS)
    costs = text[text.index("<h2>Cost</h2>") :]
    for cells in (("apart", "3.00", "1.50", "100% of the largest"), ("alike", "2.00", "1.00", "67% of the largest")):
        row = costs[costs.index(f">{cells[0]}</th>") :].partition("</tr>")[0]
        assert all(cell in row for cell in cells[1:])
    assert "not measured" in costs


def test_figures_that_a_report_is_without_are_said_not_to_be_measured():
    bare = {name: ablation(0.1, columns=("identity",)) for name in ("plain", "other")}
    text = ablations_as_html(bare, COLUMNS, SETTINGS)
    assert rows(text)["other"].count("not measured") == len(COLUMNS) - 1
    assert "expression_error, identity: not measured." in text
    assert ablations_as_html(bare, COLUMNS, SETTINGS) == text
