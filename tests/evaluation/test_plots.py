"""Plots and small drawings: well-formed, in the page's colours, and their marks are where the numbers say."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from genaffect_jax.evaluation import plots
from genaffect_jax.evaluation.figures import Dial
from genaffect_jax.evaluation.labels import Box, place_labels
from genaffect_jax.evaluation.markup import STYLE, difference_bar, element, range_bar, table
from genaffect_jax.evaluation.protocol import INTENSITIES
from genaffect_jax.metrics.bootstrap import Interval

NAN = float("nan")
DIAL = Dial(INTENSITIES, tuple(0.5 * i for i in INTENSITIES), INTENSITIES, (0.9,) * len(INTENSITIES))
PEOPLE = [{"hair": "long $a$ <b>" if i < 5 else "short"} for i in range(8)]


def drawn():
    axes = plots.Axis("error", (0.1, 0.2, NAN)), plots.Axis("identity", (0.5, 0.6, 0.7))
    marks = [plots.Mark("mean & more", 0.15, 0.55, (0.1, 0.2), (0.5, 0.6)), plots.Mark("far", 0.3, 0.9, strong=False)]
    return {
        "scatter": plots.scatter("one", "Title <&>", *axes, marks, names=("a", "", ""), cross=(0.15, 0.55)),
        "dials": plots.dial_curves({f"word {i}": DIAL for i in range(6)}),
        "groups": plots.group_strips(PEOPLE, {"identity": np.linspace(0, 1, 8)}, 4),
    }


@pytest.fixture(scope="module")
def all_plots():
    return drawn()


def test_plots_are_well_formed_titled_and_in_colours_of_the_page_alone(all_plots):
    variables = set(re.findall(r"(--\w+):", STYLE))
    for name, svg in all_plots.items():
        root = ElementTree.fromstring(svg)
        assert root.find("title").text == root.get("aria-label"), name
        assert not re.findall(r"(?:fill|stroke|color)[:=]\s*\"?#", svg), name
        assert set(re.findall(r"var\((--\w+)\)", svg)) <= variables, name
        assert not re.search(r"\d{4}-\d\d-\d\d", svg), name
    assert ElementTree.fromstring(all_plots["scatter"]).find("title").text == "Title <&>"


def test_equal_input_gives_equal_plots(all_plots):
    assert drawn() == all_plots


def test_text_stays_text_as_it_is(all_plots):
    def texts(svg):
        return [t.text for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("text")]

    assert "mean & more" in texts(all_plots["scatter"])
    assert "long $a$ <b> (5)" in texts(all_plots["groups"])
    assert {f"word {i}" for i in range(6)} <= set(texts(all_plots["dials"]))


def test_dials_without_true_images_have_no_curve_of_them():
    svg = plots.dial_curves({"joy": Dial(INTENSITIES, INTENSITIES, (), (0.9,) * len(INTENSITIES))})
    assert "generated" in svg
    assert "true images" not in svg
    without_amounts = plots.dial_curves({"joy": Dial(INTENSITIES, (), (), (0.9,) * len(INTENSITIES))})
    assert "not measured" in without_amounts
    assert "not measured" not in svg
    with pytest.raises(ValueError, match="no dials"):
        plots.dial_curves({})


def test_groups_have_a_mean_from_the_smallest_size_on_and_none_without_attributes():
    values = {"identity": [0.0] * 8}

    def means(smallest):
        return plots.group_strips(PEOPLE, values, smallest).count("stroke-width: 3")

    assert (means(3), means(4), means(6)) == (2, 1, 0)
    assert plots.group_strips([{}] * 8, values, 4) is None
    assert plots.group_strips(PEOPLE, {}, 4) is None


def mark(bar):
    """The place of the value in a bar."""
    return float(re.search(r'class="value" x1="([\d.]+)"', bar)[1])


@pytest.mark.parametrize(("floor", "ceiling"), [(0.0, 1.0), (1.0, 0.0), (16.0, 4.0), (1.0, -1.0)])
def test_a_value_lies_in_its_bar_as_far_as_it_lies_between_floor_and_ceiling(floor, ceiling):
    def bar(share):
        value = floor + share * (ceiling - floor)
        return range_bar(Interval(value, value - 0.01, value + 0.01, 9, 0.95), floor, ceiling)

    places = [mark(bar(share)) for share in (0.0, 0.25, 0.5, 1.0)]
    ends = [float(x) for x in re.findall(r'class="end" x1="([\d.]+)"', bar(0.5))]
    assert places[0] == pytest.approx(ends[0], abs=0.11)
    assert places[3] == pytest.approx(ends[1], abs=0.11)
    assert places[1] == pytest.approx(0.75 * ends[0] + 0.25 * ends[1], abs=0.11)
    assert "50% of the way" in bar(0.5)


def test_a_value_far_beyond_an_end_is_an_arrowhead_and_without_ends_there_is_no_bar():
    beyond = range_bar(Interval(-3.0, -3.1, -2.9, 9, 0.95), 0.0, 1.0)
    assert 'class="beyond"' in beyond
    assert 'class="value"' not in beyond
    assert "-300% of the way" in beyond
    for value, floor, ceiling in ((0.5, NAN, 1.0), (0.5, 0.0, NAN), (NAN, 0.0, 1.0), (0.5, 1.0, 1.0)):
        assert range_bar(Interval(value, NAN, NAN, 9, 0.95), floor, ceiling) == ""


def test_the_bar_of_a_difference_has_0_in_its_middle():
    right, left = (difference_bar(Interval(v, v - 0.1, v + 0.1, 9, 0.95)) for v in (0.3, -0.3))
    middle = float(re.search(r'class="end" x1="([\d.]+)"', right)[1])
    assert mark(right) - middle == pytest.approx(middle - mark(left), abs=0.11)
    assert mark(right) > middle
    assert difference_bar(Interval(0.0, NAN, NAN, 1, 0.95)) == ""


def test_elements_escape_what_is_not_markup_and_tables_fill_short_rows():
    assert element("p", "<b>", element("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert '<td colspan="2"></td>' in table(["a", "b", "c", "d"], [["x", "not measured"]], caption="t")


def test_names_cover_neither_each_other_nor_points_nor_lines_while_there_is_room():
    points = [(100.0, 100.0), (112.0, 100.0), (100.0, 112.0), (106.0, 91.0), (390.0, 200.0)]
    names, size, line = [f"setting-{i}" for i in range(5)], 11.0, Box(60, 97, 160, 103)
    places = place_labels(points, names, size, Box(0, 0, 400, 300), [line])
    boxes = []
    for (x, y), name, place in zip(points, names, places, strict=True):
        wide = 0.56 * size * len(name)
        left = x + place.dx - {"left": 0, "center": wide / 2, "right": wide}[place.align]
        boxes.append(Box(left, y + place.dy - 0.6 * size, left + wide, y + place.dy + 0.6 * size))
    assert all(a.overlap(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.overlap(line) == 0 for box in boxes)
    assert all(box.overlap(Box(x - 2, y - 2, x + 2, y + 2)) == 0 for box in boxes for x, y in points)
    assert boxes[4].right <= 400
    assert math.hypot(places[4].dx, places[4].dy) < 10


def test_points_without_a_name_or_a_place_have_no_label():
    assert place_labels([(1.0, 1.0), (NAN, 1.0)], ["", "a"], 11, Box(0, 0, 9, 9)) == [None, None]
