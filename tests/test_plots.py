"""Plots of the pages: lines break, bars add up, axes and figures are round."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from tritonrank.report.plots.axes import Band, Series, bars, line_plot, stacked_bars
from tritonrank.report.plots.rows import IntervalRow, interval_plot
from tritonrank.report.plots.scatter import Dot, scatter
from tritonrank.report.plots.svg import figure, ticks


def test_lines_break_where_nothing_is_known() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.0), (4.0, None), (5.0, 3.0), (6.0, 3.0)]
    svg = line_plot([Series("a", points, 1)], x_label="s", y_label="ms", bands=[Band(0, 3, "first")])
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 1  # the value that stands alone
    ElementTree.fromstring(svg)
    assert line_plot([Series("a", [(0.0, None)], 1)], x_label="s", y_label="ms") == ""


def test_bars_add_up() -> None:
    svg = ElementTree.fromstring(stacked_bars([("a", {"x": 1.0, "y": 3.0}), ("b", {"x": 2.0})], ["x", "y"], "ms"))
    widths = [float(rect.attrib["width"]) for rect in svg.iter("rect")]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[0], rel=0.01)
    heights = [
        float(rect.attrib["height"])
        for rect in ElementTree.fromstring(
            bars([("1", [80.0]), ("2", [20.0])], colours=[1], x_label="x", y_label="%")
        ).iter("rect")
    ]
    assert heights[0] == pytest.approx(4 * heights[1], rel=0.01)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0), (0, 999), (3, 3), (0.001, 0.0023), (10, 1e7), (-5, 12), (0, 1e-9)]
)
def test_ticks_are_round_and_cover_everything(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 12
    steps = {round(after - before, 9) for before, after in itertools.pairwise(found)}
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((0, "0"), (0.0123456, "0.0123"), (0.5, "0.5"), (1.5, "1.5"), (8.0, "8"), (22.44, "22.4"), (99.96, "100")),
        *((1234.5, "1,234"), (-0.3, "-0.3"), (float("inf"), "inf")),
    ],
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_ticks_that_are_near_each_other_have_different_names() -> None:
    plot = interval_plot([IntervalRow("a", 1.391, 1.391, 1.391), IntervalRow("b", 1.402, 1.402, 1.402)], "loss")
    names = re.findall(r'text-anchor="middle">([^<]+)<', plot)
    assert names == ["1.390", "1.395", "1.400", "1.405"]


def test_ticks_cover_the_range() -> None:
    assert ticks(-0.4, 2.9, 4) == [-1, 0, 1, 2, 3]
    assert ticks(0, 0.05, 4) == [0, 0.02, 0.04, 0.06]
    assert ticks(2, 2, 4)[0] <= 2 <= ticks(2, 2, 4)[-1]


def test_dots_lie_by_value_by_logarithm_or_by_name_and_their_words_are_text() -> None:
    def places(svg: str) -> list[tuple[float, float]]:
        circles = ElementTree.fromstring(svg).iter("circle")
        return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in circles]

    values = [(1e-5, 0.30), (1e-4, 0.32), (1e-3, 0.31)]
    dots = [Dot(x, y, f"<b>{x}</b>") for x, y in values]
    svg = scatter(dots, x_label="rate", y_label="NDCG", is_log=True, steps=[(-5, 0.3), (-4, 0.32)])
    (first, _), (second, top), (third, _) = places(svg)
    assert second - first == pytest.approx(third - second, abs=0.1)
    assert top == min(y for _, y in places(svg))
    assert "<b>" not in svg
    assert svg.count("<polyline") == 1
    named = places(scatter([Dot("a", 1.0, ""), Dot("c", 2.0, "")], x_label="loss", y_label="n", names=["a", "b", "c"]))
    assert named[1][0] - named[0][0] > 100
    assert scatter([], x_label="x", y_label="y") == ""
    assert len(places(scatter([Dot(3.0, 0.5, "one")], x_label="x", y_label="y"))) == 1
