"""The page: it needs nothing else, escapes what comes from data, says what is missing, and shows what is planted."""

import base64
import dataclasses
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.pages import Page, assert_needs_no_other_file

from genaffect_jax.evaluation.catalogue import ABOUT
from genaffect_jax.evaluation.comparison import Difference
from genaffect_jax.evaluation.figures import Dial, Evaluation, Figure
from genaffect_jax.evaluation.groups import WorstGroup
from genaffect_jax.evaluation.page import as_html, sheet_data
from genaffect_jax.evaluation.protocol import INTENSITIES, word_names
from genaffect_jax.evaluation.report import write_report
from genaffect_jax.metrics.bootstrap import Interval
from genaffect_jax.metrics.words import Confusion

PEOPLE = 8
WORST = 5
NASTY = "<script>alert('$x$')</script> & \"more\""
SETTINGS = {
    "model": "model, step 1",
    "people": f"{PEOPLE} people.",
    "protocol": {"people": PEOPLE, "expressions": 3, "dial_people": 1, "dial_words": ["joy"]},
    "sampling": {"steps": 24, "solver": "euler", "seed": 3, "guidance_expression": 2.5},
    "evaluators": {"identity": "reader 0123", "expression": "reader 4567"},
    "preprocessing": {"identity": "the whole image", "expression": "a square"},
}


def an_evaluation(**changes):
    """Numbers in the right places; person `WORST` has the worst identity."""
    rng = np.random.default_rng(0)
    figures = {}
    for name in ABOUT:
        by_person = rng.uniform(0.4, 0.6, PEOPLE)
        by_person[WORST] = 0.1 if ABOUT[name].better == "higher" else 0.9
        value = Interval(float(by_person.mean()), 0.35, 0.65, PEOPLE, 0.95)
        figures[name] = Figure(value, 0.9, 0.1, tuple(by_person.tolist()))
    names = word_names()
    shares = np.full((len(names), len(names)), np.nan)
    shares[names.index("anger")] = 0.0
    shares[names.index("anger"), names.index("irritation")] = 0.75
    shares[names.index("anger"), names.index("anger")] = 0.25
    dial = Dial(INTENSITIES, tuple(0.5 * i for i in INTENSITIES), INTENSITIES, (0.9,) * len(INTENSITIES))
    evaluation = Evaluation(
        figures=figures,
        confusions=((Confusion("anger", "irritation", 0.75), 0.125),),
        dials={"joy": dial},
        worst_groups={"identity": WorstGroup("glasses: yes", 4, 0.3, Interval(-0.2, -0.3, -0.1, 4, 0.95))},
        names=tuple(f"seed:{1_000_001 + person}" for person in range(PEOPLE)),
        attributes=tuple({"glasses": "yes" if person % 2 else "no"} for person in range(PEOPLE)),
        word_shares=shares,
        true_word_shares=shares,
    )
    return dataclasses.replace(evaluation, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose sheets are one colour each: red is the person's number."""
    out = tmp_path_factory.mktemp("evaluation")
    (out / "people").mkdir()
    for person in range(PEOPLE):
        Image.new("RGB", (120, 40), (20 * person, 100, 50)).save(out / "people" / f"{person:04d}.png")
    return out


def test_the_page_needs_no_other_file_and_every_reference_is_met(folder):
    assert_needs_no_other_file(as_html(an_evaluation(), SETTINGS, folder))


def test_every_drawing_and_image_says_what_it_shows(folder):
    page = Page(as_html(an_evaluation(), SETTINGS, folder))
    assert len(page.all("svg")) > 4
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert page.all("img")
    assert all(image["alt"] for image in page.all("img"))


def test_what_comes_from_data_is_escaped(folder):
    evaluation = an_evaluation()
    evaluation = dataclasses.replace(
        evaluation,
        attributes=tuple({NASTY: NASTY} for _ in range(PEOPLE)),
        confusions=((Confusion(NASTY, NASTY, 1.0), 0.0),),
        dials={NASTY: evaluation.dials["joy"]},
        worst_groups={"identity": dataclasses.replace(evaluation.worst_groups["identity"], group=NASTY)},
    )
    settings = SETTINGS | {"model": NASTY, "protocol": {NASTY: NASTY}, "evaluators": {NASTY: NASTY}}
    page = Page(as_html(evaluation, settings, folder))
    assert "script" not in page.tags
    # Title, head (model, twice each of protocol and evaluators), dial (with its name for readers), group, table, words.
    assert page.text.count("<script>alert('$x$')</script> & \"more\"") >= 11


def test_the_order_is_that_of_a_report(folder):
    against = {"identity": Difference(0.5, 0.4, Interval(0.1, 0.05, 0.15, PEOPLE, 0.95), True)}
    text = as_html(an_evaluation(), SETTINGS, folder, against)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Figures",
        "Identity against expression",
        "Dials",
        "Confused words",
        "Groups of people",
        "Worst people",
        "Against the other report",
        "How the figures are computed",
    ]
    assert "the interval excludes 0" in text
    assert "Against the other report" not in as_html(an_evaluation(), SETTINGS, folder)


def test_the_head_names_model_protocol_evaluators_and_the_settings_that_are_not_usual(folder):
    text = Page(as_html(an_evaluation(), SETTINGS, folder)).text
    for line in ("model, step 1", "people: 8", "reader 0123", "reader 4567", "seed: 3", "guidance expression: 2.5"):
        assert line in text
    more = SETTINGS | {"clip": None, "data": {"source": "folder", "left_out": {"anna": "one image", "ben": "none"}}}
    text = Page(as_html(an_evaluation(), more, folder)).text
    assert "clip:" not in text
    assert "left out: 2" in text
    usual = SETTINGS | {"sampling": {"steps": 24, "guidance_expression": 1.5}}
    assert "guidance expression" not in Page(as_html(an_evaluation(), usual, folder)).text


def test_what_was_not_measured_is_said_not_to_be(folder):
    evaluation = an_evaluation()
    figures = {name: evaluation.figures[name] for name in ("identity", "sharpness")}
    some = Page(as_html(dataclasses.replace(evaluation, figures=figures, dials={}), SETTINGS, folder)).text
    assert some.count("not measured") == len(ABOUT) - 2 + 2  # in the table; expression in the scatter; dials
    assert "Dials were not measured." in some
    nothing = np.full_like(evaluation.word_shares, np.nan)
    bare = an_evaluation(
        figures={},
        dials={},
        confusions=(),
        worst_groups={},
        attributes=(),
        word_shares=nothing,
        true_word_shares=nothing,
    )
    text = as_html(bare, SETTINGS, folder)
    for sentence in ("Words were not measured.", "No attributes of these people", "No figure of single people"):
        assert sentence in text
    assert "<img" not in text


def test_people_without_attributes_leave_the_rest_of_the_page_alone(folder):
    text = as_html(an_evaluation(attributes=({},) * PEOPLE, worst_groups={}), SETTINGS, folder)
    assert "No attributes of these people" in text
    assert "Dial curves of joy" in text


def test_figures_without_ends_are_shown_without_a_bar(folder):
    nan = float("nan")
    figures = {name: Figure(Interval(0.5, nan, nan, 1, 0.95), nan, nan, (nan,) * PEOPLE) for name in ABOUT}
    text = as_html(an_evaluation(figures=figures), SETTINGS, folder)
    assert "from the floor to the ceiling</title>" not in text
    assert "nan" not in Page(text).text


def test_the_sheets_of_the_worst_people_are_inside_the_worst_first(folder):
    page = Page(as_html(an_evaluation(), SETTINGS, folder))
    images = page.all("img")
    assert len(images) == len({image["alt"] for image in images})  # each person once
    assert 4 <= len(images) <= 8
    with Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition(",")[2]))) as sheet:
        assert sheet.size == (120, 40)
        assert abs(sheet.getpixel((60, 20))[0] - 20 * WORST) <= 3
    assert f"#person-{WORST}" in page.references


def test_a_sheet_that_is_missing_or_damaged_is_said_to_be(folder, tmp_path):
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / f"{WORST:04d}.png").write_bytes(b"\x89PNG\r\n\x1a\ntorn")
    text = as_html(an_evaluation(), SETTINGS, tmp_path)
    assert f"people/{WORST:04d}.png is not there or not readable" in text
    assert "<img" not in text


def test_large_sheets_shrink_to_their_share_of_the_page(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 2400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "sheet.png")
    content = base64.b64decode(sheet_data(tmp_path / "sheet.png", 300_000).partition(",")[2])
    assert len(content) <= 300_000
    with Image.open(io.BytesIO(content)) as sheet:
        assert sheet.width > 200
        assert sheet.width / sheet.height == pytest.approx(2400 / 900, rel=0.02)


def test_a_confusion_is_in_the_matrix_and_beside_the_encoders_own(folder):
    text = as_html(an_evaluation(), SETTINGS, folder)
    assert "<title>anger read as irritation: 0.75</title>" in text
    assert "<title>joy: not asked for</title>" in text
    row = text[text.index('<th scope="row">anger</th>') :].partition("</tr>")[0]
    assert [cell for cell in ("irritation", "0.75", "0.12") if cell not in row] == []


def test_the_same_evaluation_gives_the_same_bytes_whatever_the_users_plots_look_like(folder):
    import matplotlib

    first = as_html(an_evaluation(), SETTINGS, folder)
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert as_html(an_evaluation(), SETTINGS, folder) == first
        assert dict(matplotlib.rcParams) == before


def test_the_report_is_written_with_its_page(folder):
    write_report(an_evaluation(), SETTINGS, folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == as_html(an_evaluation(), SETTINGS, folder)


def test_the_command_starts_without_the_plotting_library():
    code = "import sys, genaffect_jax.evaluation.ablations; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
