"""Charts: from numbers to places, and what is said beside the picture."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from fellrec.report.charts import (
    Bar,
    Grid,
    Line,
    LineFrame,
    Mark,
    Row,
    Shade,
    Words,
    bar_chart,
    bar_legend,
    heat_legend,
    heat_map,
    interval_chart,
    interval_legend,
    line_chart,
    line_legend,
)
from fellrec.report.charts.bars import PATTERNS
from fellrec.report.charts.heat import LEVELS
from fellrec.report.charts.scale import (
    Scale,
    extent,
    shorten,
    text_width,
    tick_labels,
    ticks,
    whole_ticks,
)
from fellrec.report.charts.svg import element

WORDS = Words("chart", "What & who", "a < b")
VALUES = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


def parsed(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def of_class(svg: Markup, name: str) -> list[ElementTree.Element]:
    """Return the elements that have this class among theirs."""
    return [each for each in parsed(svg).iter() if name in each.get("class", "").split()]


def texts(svg: Markup) -> list[str]:
    return [each.text or "" for each in parsed(svg).iter("text")]


def number(each: ElementTree.Element, key: str) -> float:
    return float(each.attrib[key])


def points(line: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in line.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_a_scale_is_straight_and_meets_its_ends() -> None:
    scale = Scale(2.0, 4.0, 100.0, 300.0)
    assert [scale(value) for value in (2.0, 3.0, 4.0)] == [100.0, 200.0, 300.0]
    assert Scale(1.0, 1.0, 0.0, 10.0)(1.0) == 5.0


@given(VALUES, VALUES, st.integers(2, 8))
def test_ticks_are_even_and_enclose_the_values(one: float, other: float, count: int) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high, count)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + slack and found[-1] >= high - slack
    steps = [b - a for a, b in pairwise(found)]
    assert len(found) >= 2 and max(steps) - min(steps) < slack
    assert len(found) <= count + 2
    assert len(set(tick_labels(found))) == len(found)


@pytest.mark.parametrize(
    ("low", "high", "count", "labels"),
    [
        (0.0, 0.1, 3, ["0.00", "0.05", "0.10"]),
        (0.081, 0.102, 4, ["0.08", "0.09", "0.10", "0.11"]),
        (0.0, 1200.0, 4, ["0", "500", "1,000", "1,500"]),
        (0.998, 0.9985, 3, ["0.99800", "0.99825", "0.99850"]),
        (0.0, 0.0, 3, ["0.00", "0.25", "0.50"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, count: int, labels: list[str]) -> None:
    assert tick_labels(ticks(low, high, count)) == labels


def test_ticks_of_rounds_are_whole() -> None:
    assert whole_ticks(1, 5, 6) == [1, 2, 3, 4, 5]
    assert whole_ticks(1, 100, 5) == [1, 26, 51, 76]
    assert whole_ticks(3, 3, 5) == [3]


def test_an_extent_is_of_what_is_a_number() -> None:
    assert extent([None, 2.0, math.nan, -1.0]) == (-1.0, 2.0)
    assert extent([None, math.inf]) is None


@given(st.text(min_size=1), st.floats(20, 300))
def test_shortened_words_fit(words: str, width: float) -> None:
    short = shorten(words, width, 12)
    assert text_width(short, 12) <= width
    assert short == words or (short.endswith("…") and words.startswith(short[:-1]))


def test_elements_escape_texts_and_attributes() -> None:
    made = element("text", "<b>&", class_='a"b')
    assert made == Markup('<text class="a&#34;b">&lt;b&gt;&amp;</text>')


def all_charts() -> dict[str, Markup]:
    frame = LineFrame.around([0.0, 1.0], (1, 3))
    grid = Grid(["<a>", "b"], ["<a>", "b"], [[None, 0.5], [0.2, None]])
    return {
        "line": line_chart(WORDS, frame, [Line([(1, 0.0), (2, 1.0)])], label="<i>", note="n"),
        "interval": interval_chart(WORDS, [Row("<a>", "1", [Mark(1.0, 0.5, 2.0)])], width=300),
        "heat": heat_map(WORDS, grid, Shade(0.0, 1.0), width=300),
        "bar": bar_chart(WORDS, [Bar("<a>", "3", [1.0, 2.0])], width=300, largest=3.0),
    }


@pytest.mark.parametrize("kind", ["line", "interval", "heat", "bar"])
def test_every_chart_says_what_it_shows(kind: str) -> None:
    svg = parsed(all_charts()[kind])
    assert svg.get("role") == "img"
    by_id = {each.get("id"): each for each in svg.iter() if each.get("id")}
    title, told = by_id[svg.get("aria-labelledby")], by_id[svg.get("aria-describedby")]
    assert (title.tag, title.text) == ("title", WORDS.title)
    assert (told.tag, told.text) == ("desc", WORDS.description)


def test_a_line_goes_through_its_values_and_stops_at_gaps() -> None:
    frame = LineFrame(300, 184, (1, 5), (0.0, 0.5, 1.0))
    values: Sequence[float | None] = [0.0, 1.0, None, 0.5, None]
    svg = line_chart(WORDS, frame, [Line(list(enumerate(values, start=1)))], label="c0", gone=[3])
    (run,) = of_class(svg, "line")
    ends = points(run)
    assert len(ends) == 2 and ends[0][1] > ends[1][1]  # larger values stand higher
    dots = [(number(dot, "cx"), number(dot, "cy")) for dot in of_class(svg, "dot")]
    assert dots[:2] == ends and len(dots) == 3
    assert dots[2][1] == pytest.approx((ends[0][1] + ends[1][1]) / 2)
    step = ends[1][0] - ends[0][0]
    assert dots[2][0] == pytest.approx(ends[0][0] + 3 * step, abs=0.02)
    assert len(of_class(svg, "cross")) == 1


def test_the_ring_is_around_the_best_round() -> None:
    frame = LineFrame(300, 184, (1, 2), (0.0, 1.0))
    line = Line([(1, 0.2), (2, 0.9)])
    (ring,) = of_class(line_chart(WORDS, frame, [line], label="c0", best=2), "ring")
    last = of_class(line_chart(WORDS, frame, [line], label="c0"), "dot")[-1]
    assert (ring.get("cx"), ring.get("cy")) == (last.get("cx"), last.get("cy"))
    assert not of_class(line_chart(WORDS, frame, [line], label="c0", best=7), "ring")


def test_the_kinds_of_lines_differ_in_more_than_colour() -> None:
    legend = str(line_legend([("main", "a"), ("second", "b"), ("context", "c")], best=True))
    samples = re.findall(r"<svg.*?</svg>", legend)
    assert len(set(samples)) == 4
    assert [sample.count("dot") for sample in samples] == [2, 2, 0, 1]
    assert all('aria-hidden="true"' in sample for sample in samples)


def test_intervals_lie_on_one_scale() -> None:
    rows = [Row("all", "", [Mark(0.1, 0.0, 0.2)], strong=True), Row("c0", "", [Mark(0.2)])]
    svg = interval_chart(WORDS, rows, width=400, reference=0.1)
    (whisker,) = of_class(svg, "whisker")
    first, second = of_class(svg, "mark")
    left, right = number(whisker, "x1"), number(whisker, "x2")
    assert number(first, "cx") == pytest.approx((left + right) / 2, abs=0.02)
    assert number(second, "cx") == pytest.approx(right, abs=0.02)
    (line,) = of_class(svg, "reference")
    assert line.get("x1") == first.get("cx")
    zero = of_class(svg, "grid")[0]
    assert number(zero, "x1") == pytest.approx(left, abs=0.02)


def test_series_have_markers_of_their_own() -> None:
    marks = [Mark(0.1 * n, series=n) for n in range(4)]
    svg = interval_chart(WORDS, [Row("c0", "", marks)], width=400)
    drawn = of_class(svg, "mark")
    assert len({(each.tag, len(each.get("points", "").split())) for each in drawn}) == 3
    diamond, square = drawn[1].attrib["points"], drawn[2].attrib["points"]
    assert diamond.split()[0].split(",")[0] != square.split()[0].split(",")[0]
    assert str(interval_legend(["a", "b", "c", "d"], reference="e")).count("<li>") == 5


def test_shades_run_from_the_lowest_to_the_highest() -> None:
    shade = Shade(0.2, 1.0)
    levels = [shade.level(0.2 + 0.8 * n / 100) for n in range(101)]
    assert levels == sorted(levels) and set(levels) == set(range(LEVELS))
    assert (shade.level(-5.0), shade.level(5.0)) == (0, LEVELS - 1)
    assert "0.20" in heat_legend(shade, "x") and "1.00" in heat_legend(shade, "x")


def test_a_heat_map_has_a_square_for_each_cell_and_numbers_where_there_is_room() -> None:
    grid = Grid(["a", "b"], ["a", "b"], [[None, 0.25], [0.75, 1.0]])
    svg = heat_map(WORDS, grid, Shade(0.0, 1.0), width=300)
    squares = Counter[str]()
    for each in parsed(svg).iter("path"):
        squares[each.attrib["class"]] += each.attrib["d"].count("M")
    assert squares == {"open": 1, "h2": 1, "h6": 1, "h7": 1}
    assert texts(svg) == ["a", "b", "a", "b", "–", "0.25", "0.75", "1.00"]


def test_a_large_heat_map_stays_small_and_labels_what_fits() -> None:
    names = [f"client-{n:02d}" for n in range(50)]
    values = [[(row * column % 7) / 7 for column in range(50)] for row in range(50)]
    svg = heat_map(WORDS, Grid(names, names, values), Shade(0.0, 1.0), width=340)
    assert len(list(parsed(svg).iter("path"))) <= LEVELS and len(str(svg)) < 110_000
    written = texts(svg)
    assert "0.57" not in written and "client-00" in written and "1" in written
    assert 10 < len(written) < 40


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("a", "4", [1.0, 3.0]), Bar("b", "2", [2.0, 0.0])]
    svg = bar_chart(WORDS, bars, width=400, largest=4.0)
    lengths = [number(part, "width") for part in of_class(svg, "part")]
    assert lengths[1] == pytest.approx(3 * lengths[0], abs=0.1)
    assert lengths[2] == pytest.approx(2 * lengths[0], abs=0.1)
    first, second, _ = of_class(svg, "part")
    assert number(second, "x") == pytest.approx(number(first, "x") + lengths[0], abs=0.02)


def test_parts_of_bars_differ_in_more_than_colour() -> None:
    svg = bar_chart(WORDS, [Bar("a", "", [1.0] * PATTERNS)], width=400, largest=4.0)
    filled = [each.attrib["fill"] for each in parsed(svg).iter("rect") if "fill" in each.attrib]
    assert filled == ["url(#chart-p1)", "url(#chart-p2)"]
    legend = str(bar_legend("kinds", ["a", "b", "c", "d"]))
    ids = re.findall(r'id="([^"]+)"', legend)
    assert len(ids) == len(set(ids)) == 8


def test_stacked_rows_give_the_marks_the_whole_width() -> None:
    named = "a strategy with a long name"
    rows = [Row(named, "0.1234", [Mark(0.2, 0.1, 0.3)]), Row("b", "1", [])]
    beside, above = (
        interval_chart(WORDS, rows, width=330, stacked=stacked, reference=0.15, second=0.25)
        for stacked in (False, True)
    )

    def length(svg: Markup) -> float:
        (bar,) = of_class(svg, "whisker")
        return number(bar, "x2") - number(bar, "x1")

    assert length(above) > 1.5 * length(beside)
    assert named in texts(above) and named not in texts(beside)
    # A piece of each line stands in each row, below its label.
    for line in of_class(above, "reference"):
        assert line.tag.endswith("path") and line.attrib["d"].count("M") == 2
    label = next(each for each in parsed(above).iter("text") if each.text == "b")
    (disc,) = of_class(above, "mark")
    assert number(label, "y") > number(disc, "cy")
    short = [Row("a", "1", [Mark(0.2)])]
    plain = interval_chart(WORDS, short, width=330)
    assert interval_chart(WORDS, short, width=330, stacked=True) == plain


def test_charts_side_by_side_share_a_span() -> None:
    (one,), (other,) = (
        of_class(
            interval_chart(WORDS, [Row("a", "", [Mark(value)])], width=300, span=[0.4]), "mark"
        )
        for value in (0.1, 0.4)
    )
    assert number(one, "cx") < number(other, "cx")


def test_steps_of_a_line_have_their_own_names() -> None:
    frame = LineFrame.around([0.1, 0.3], (1, 3), places=("3", "5", "50"))
    svg = line_chart(WORDS, frame, [Line([(1, 0.1), (2, 0.2), (3, 0.3)])], label="x")
    assert [each for each in texts(svg) if each in ("3", "5", "50")] == ["3", "5", "50"]
    assert not any("round" in each for each in texts(svg))
    crowded = LineFrame.around([0.1], (1, 30), places=[f"value {n}" for n in range(30)])
    shown = texts(line_chart(WORDS, crowded, [Line([(1, 0.1)])], label="x"))
    assert 2 < sum(each.startswith("value") for each in shown) < 8
