"""Axes have round numbers inside them, and a thinned curve keeps its peaks."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raytrain_plus.observe.quantities import bytes_of, duration, number, share
from raytrain_plus.observe.scales import Scale, scale_of, smoothed, thinned

VALUES = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(VALUES, max_size=20), st.booleans(), st.floats(0, 0.2))
@example(values=[1.0, 2.225073858507e-311], log=True, room=0.125)
def test_all_values_are_on_their_scale(values, log, room):
    scale = scale_of(values, log=log, room=room)
    assert scale.low < scale.high
    assert all(0 <= scale.place(value) <= 1 for value in values)
    assert scale.place(scale.low) == 0
    assert scale.place(scale.high) == 1
    ordered = [scale.place(value) for value in sorted(values)]
    assert ordered == sorted(ordered)


@given(
    st.floats(1e-6, 1e6),
    st.floats(1e-3, 1e9),
    st.integers(2, 8),
    st.booleans(),
    st.booleans(),
)
def test_ticks_are_few_and_inside(low, span, most, log, seconds):
    scale = Scale(low, low + span, log)
    ticks = scale.ticks(most, seconds=seconds)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 2 * most + 2
    room = 1e-6 * (abs(low) + span)
    assert all(scale.low - room <= tick <= scale.high + room for tick in ticks)


def test_ticks_are_round_numbers():
    assert Scale(0, 744).ticks(6, whole=True) == [0, 200, 400, 600]
    assert Scale(0, 3).ticks(5, whole=True) == [0, 1, 2, 3]
    assert Scale(0, 95).ticks(6, seconds=True) == [0, 30, 60, 90]
    assert Scale(0, 86400 * 9).ticks(6, seconds=True) == [86400 * day for day in (0, 2, 4, 6, 8)]
    assert Scale(0.01, 3, log=True).ticks(5) == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    assert Scale(1e-9, 1e9, log=True).ticks(5)[0] == 1e-9


@given(st.lists(VALUES, max_size=400), st.integers(4, 60))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values, most):
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert len(kept) <= max(most, 0)
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        heights = [y for _, y in kept]
        assert (min(heights), max(heights)) == (min(values), max(values))


def test_taking_every_tenth_point_would_lose_a_peak():
    """The negative control."""
    points = [(i, 1.0 if i == 55 else 0.0) for i in range(100)]
    assert max(y for _, y in points[::10]) == 0.0
    assert max(y for _, y in thinned(points, 12)) == 1.0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (number(0.033416), "0.03342"),
        (number(12345), "12,345"),
        (number(0.98), "0.98"),
        (number(1.5e-7), "1.5e-07"),
        (number(math.nan), "nan"),
        (duration(0.0858), "0.086 s"),
        (duration(0), "0.00 s"),
        (duration(12.34), "12.3 s"),
        (duration(59.96), "1 min"),
        (duration(125), "2 min 5 s"),
        (duration(3600 * 3 + 720), "3 h 12 min"),
        (duration(86400 * 2), "2 d"),
        (bytes_of(512), "512 B"),
        (bytes_of(310302), "310 KB"),
        (bytes_of(999_600), "1 MB"),
        (share(1, 8), "12.5 %"),
        (share(1, 1e9), "< 0.1 %"),
        (share(0, 0), ""),
    ],
)
def test_quantities_have_readable_units(said, words):
    assert said == words


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20), st.data())
def test_a_moving_mean_is_of_the_values_around_it(values, window, data):
    place = data.draw(st.integers(0, len(values) - 1))
    half = window // 2
    around = values[max(0, place - half) : place + half + 1]
    (mean,) = smoothed(values, window, [place])
    tolerance = 1e-9 * max(1.0, *map(abs, values)) * len(values)
    assert mean == pytest.approx(sum(around) / len(around), abs=tolerance)
