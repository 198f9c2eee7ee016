"""Charts show their data as text and as drawing, and no text becomes markup."""

import json
import re
from html.parser import HTMLParser

from raytrain_plus.observe.charts import (
    Axis,
    Mark,
    Part,
    Series,
    chart,
    stacked_bar,
)
from raytrain_plus.observe.intervals import interval
from raytrain_plus.observe.scales import Scale

X, Y = Axis(label="step"), Axis(label="loss")
HOSTILE = "</script><script>alert(1)</script>\"'<b>&"


class Tags(HTMLParser):
    """The tags of some HTML."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def drawn(text, kind):
    return re.findall(rf'class="{kind} c\d" d="([^"]*)"', text)


def test_a_line_goes_from_corner_to_corner():
    y = Axis(label="loss", low=0, high=4)
    text = chart("Loss", [Series(label="", points=[(0, 0), (1, 4), (2, 2)])], X, y)
    assert drawn(text, "line") == ["M0.0 300.0L500.0 0.0L1000.0 150.0"]
    assert 'aria-label="Loss, over step: loss from 0 at 0 to 2 at 2, between 0 and 4"' in text


def test_steps_keep_their_value_until_the_next():
    y = Axis(label="workers", low=0, high=3)
    text = chart("W", [Series(label="", points=[(0, 3), (1, 0), (2, 3)], kind="steps")], X, y)
    assert drawn(text, "line") == ["M0.0 0.0H500.0V300.0H1000.0V0.0"]


def test_dots_and_a_line_of_one_point_are_visible():
    for kind in ("dots", "line", "line and dots"):
        text = chart("One", [Series(label="", points=[(1, 1)], kind=kind)], X, Y)
        assert drawn(text, "dots"), kind
    text = chart("Two", [Series(label="", points=[(1, 1), (2, 2)])], X, Y)
    assert drawn(text, "dots") == []


def test_a_chart_without_data_says_so():
    text = chart("Loss", [Series(label="a", points=[])], X, Y)
    assert "Loss: nothing yet" in text
    assert drawn(text, "line") == []


def test_values_that_are_not_finite_are_left_out():
    points = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
    text = chart("L", [Series(label="", points=points)], X, Y)
    assert len(drawn(text, "line")[0].split("L")) == 2
    assert "nan" not in text.lower().replace("meaning", "")


def test_marks_outside_of_the_axis_are_left_out():
    series = [Series(label="", points=[(0, 1), (10, 2)])]
    marks = [Mark(at=5, label="1", title="it"), Mark(at=11, label="2", title="late")]
    text = chart("L", series, X, Y, marks)
    assert 'left:50.00%" title="it"' in text
    assert "late" not in text


def test_a_stacked_bars_parts_fill_it():
    parts = [Part(label="a", value=3, colour=0), Part(label="b", value=0, colour=1)]
    text = stacked_bar("Time", [*parts, Part(label="c", value=1, colour=2)])
    widths = [float(w) for w in re.findall(r'width="([\d.]+)"', text)]
    assert widths == [750.0, 250.0]
    assert "<title>a: 3.00 s (75.0%)</title>" in text
    assert "Time: nothing" in stacked_bar("Time", [])


def test_no_text_becomes_markup():
    series = [Series(label=HOSTILE, points=[(0, 1), (1, 2)])]
    axis = Axis(label=HOSTILE)
    marks = [Mark(at=0, label=HOSTILE, title=HOSTILE, anchor=HOSTILE)]
    clean = [Series(label="x", points=[(0, 1), (1, 2)])]
    plain = chart("x", clean, X, Y, [Mark(at=0, label="x", title="x", anchor="x")])
    hostile = chart(HOSTILE, series, axis, axis, marks)
    assert [t for t, _ in Tags(hostile).found] == [t for t, _ in Tags(plain).found]
    assert "<script>alert" not in hostile
    data = re.search(r'<script type="application/json">(.*)</script>', hostile).group(1)
    assert json.loads(data)["series"][0]["label"] == HOSTILE
    bar = stacked_bar(HOSTILE, [Part(label=HOSTILE, value=1, colour=0)], unit=HOSTILE)
    assert "script" not in {t for t, _ in Tags(bar).found}
    # The control: text that is not escaped is noticed.
    assert "b" in {t for t, _ in Tags(f"<p>{HOSTILE}").found}


SQUARE = {"x": Axis(label="x", low=0, high=10), "y": Axis(label="y", low=0, high=10)}


def test_a_band_surrounds_its_area_and_has_no_text():
    band = Series(label="b", points=[(0, 2), (10, 2), (10, 8), (0, 8)], kind="band")
    line = Series(label="l", points=[(0, 5), (10, 5)])
    text = chart("B", [band, line], **SQUARE)
    assert drawn(text, "band") == ["M0.0 240.0L1000.0 240.0L1000.0 60.0L0.0 60.0Z"]
    assert [one["label"] for one in told(text)["series"]] == ["l"]


def test_stairs_are_steps_that_are_not_filled():
    text = chart("S", [Series(label="", points=[(0, 2), (5, 8)], kind="stairs")], **SQUARE)
    assert drawn(text, "line") == ["M0.0 240.0H500.0V60.0"]
    assert drawn(text, "under") == []
    assert told(text)["series"][0]["steps"] is True


def test_whiskers_join_two_points_each():
    points = [(1, 2), (1, 4), (5, 6), (5, 8)]
    text = chart("W", [Series(label="", points=points, kind="whiskers")], **SQUARE)
    assert drawn(text, "whiskers") == ["M100.0 240.0L100.0 180.0M500.0 120.0L500.0 60.0"]


def test_all_points_of_a_cloud_keep_their_names():
    points = [(i / 500, i % 7) for i in range(5000)]
    names = [f"n{i}" for i in range(5000)]
    cloud = Series(label="", points=points, kind="specks", names=names)
    text = chart("C", [cloud, Series(label="l", points=[(0, 5), (10, 5)])], **SQUARE)
    assert [one["names"] for one in told(text)["series"]] == [names]
    assert len(told(text)["series"][0]["points"]) == 5000
    line = chart("L", [Series(label="", points=points)], **SQUARE)
    assert len(told(line)["series"][0]["points"]) <= 1200  # the control


def test_a_numbered_point_is_drawn_at_its_position():
    mark = Mark(at=5, height=2.5, label="7", title="it", anchor="r-7")
    text = chart("P", [Series(label="", points=[(0, 1), (10, 2)])], marks=[mark], **SQUARE)
    assert 'class="pin point plain" style="left:50.00%;top:75.00%" title="it" href="#r-7"' in text
    assert "rule" not in text


def test_an_interval_is_cut_off_at_the_ends_of_its_scale():
    scale = Scale(0.0, 10.0)
    text = interval((2.0, float("inf")), 5.0, scale, 1.0, HOSTILE, "good")
    assert 'd="M100.0 0V40"' in text
    assert 'd="M200.0 20.0H1000.0"' in text
    assert 'd="M500.0 20.0h0"' in text
    assert {tag for tag, _ in Tags(text).found} == {"svg", "path"}


def told(text):
    return json.loads(re.search(r'<script type="application/json">(.*)</script>', text).group(1))
